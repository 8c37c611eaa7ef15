//! Paths and query strings, read strictly: an unknown or repeated parameter is refused, with the nearest name.

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, Uri};

use serde::de::DeserializeOwned;

use crate::error::{ErrorCode, Problem};
use crate::ids::Seq;
use crate::show::{did_you_mean, quoted, short};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The parameters of a path, decoded.
#[derive(Debug)]
pub(super) struct PathOf<T>(pub(super) T);

impl<T, S> FromRequestParts<S> for PathOf<T>
where
    T: DeserializeOwned + Send,
    S: Send + Sync,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        path.map(|path| Self(path.0)).map_err(|_| {
            Problem::new(
                ErrorCode::ValidationFailed,
                "the path is not percent-encoded UTF-8",
            )
        })
    }
}

/// The parameters of a query string.
#[derive(Debug, Default)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    /// Reads the query string of `uri`, which may only name what is in `known`.
    ///
    /// # Errors
    /// `VALIDATION_FAILED`, naming the parameter.
    pub(super) fn read(uri: &Uri, known: &[&str]) -> Result<Self, Problem> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(|_| {
            Problem::new(
                ErrorCode::ValidationFailed,
                "the query string is not a list of name=value",
            )
        })?;
        for (at, (name, _)) in pairs.iter().enumerate() {
            if !known.contains(&name.as_str()) {
                return Err(unknown(name, known));
            }
            if pairs.iter().take(at).any(|(earlier, _)| earlier == name) {
                return Err(Problem::field(
                    ErrorCode::ValidationFailed,
                    name.as_str(),
                    format!("the query parameter {name} is given more than once"),
                ));
            }
        }
        Ok(Self(pairs))
    }

    /// For routes that take no parameter.
    ///
    /// # Errors
    /// `VALIDATION_FAILED`, if there is one.
    pub(super) fn none(uri: &Uri) -> Result<(), Problem> {
        Self::read(uri, &[]).map(|_| ())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// Whether `name` is given.
    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// `limit`: an integer from 1 to `most`.
    ///
    /// # Errors
    /// `VALIDATION_FAILED`, naming the bounds.
    pub(super) fn limit(&self, default: u32, most: u32) -> Result<u32, Problem> {
        let Some(text) = self.get("limit") else {
            return Ok(default);
        };
        integer(text)
            .and_then(|n| u32::try_from(n).ok())
            .filter(|n| (1..=most).contains(n))
            .ok_or_else(|| {
                Problem::field(
                    ErrorCode::ValidationFailed,
                    "limit",
                    format!("limit must be an integer from 1 to {most}"),
                )
            })
    }

    /// Where to go on reading a log: the `Last-Event-ID` header, which an `EventSource` that comes back sends
    /// beside the parameters of its first request; else `after`, also called `lastEventId`; else the beginning.
    ///
    /// # Errors
    /// `CURSOR_INVALID`; `VALIDATION_FAILED` when both parameters are given and differ.
    pub(super) fn cursor(&self, headers: &HeaderMap) -> Result<Seq, Problem> {
        let [after, alias] = ["after", "lastEventId"];
        if let (Some(one), Some(other)) = (self.get(after), self.get(alias))
            && cursor_of(after, one)? != cursor_of(alias, other)?
        {
            return Err(Problem::field(
                ErrorCode::ValidationFailed,
                alias,
                format!("{alias} and {after} mean the same, but are given with different values"),
            )
            .hint(format!("send only one of {after} and {alias}")));
        }
        let header = headers.get(LAST_EVENT_ID).filter(|value| !value.is_empty());
        let given = header
            .map(|value| ("Last-Event-ID", value.to_str().unwrap_or_default()))
            .or_else(|| {
                [after, alias]
                    .into_iter()
                    .find_map(|name| Some((name, self.get(name)?)))
            });
        given.map_or(Ok(Seq::ZERO), |(field, text)| cursor_of(field, text))
    }
}

fn cursor_of(field: &str, text: &str) -> Result<Seq, Problem> {
    integer(text)
        .map(Seq)
        .filter(|seq| *seq <= Seq::MAX)
        .ok_or_else(|| {
            Problem::field(
                ErrorCode::CursorInvalid,
                field,
                format!(
                    "{field} must be the id of an event: an integer from 0 to {}",
                    Seq::MAX
                ),
            )
        })
}

/// Digits only: no sign, no blank, no leading plus.
fn integer(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

fn unknown(name: &str, known: &[&str]) -> Problem {
    let near = did_you_mean(name, known.iter().copied());
    let problem = Problem::field(
        ErrorCode::ValidationFailed,
        short(name, 64),
        format!("unknown query parameter {}", quoted(name)),
    );
    match (near, known) {
        (Some(near), _) => problem.hint(near),
        (None, []) => problem.hint("this route takes no query parameters"),
        (None, known) => problem.hint(format!("this route takes: {}", known.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<Params, Problem> {
        let uri: Uri = format!("/runs?{query}").parse().unwrap();
        Params::read(&uri, &["limit", "after", "lastEventId"])
    }

    #[test]
    fn near_misses_are_named() {
        let problem = read("limt=5").unwrap_err();
        assert_eq!(problem.details[0].path, "limt");
        assert_eq!(problem.hint.unwrap(), "did you mean `limit`?");
        assert!(
            read("colour=red")
                .unwrap_err()
                .hint
                .unwrap()
                .contains("limit, after, lastEventId")
        );
        assert!(read("limit=1&limit=2").is_err());
        assert!(read("").is_ok());
    }

    #[test]
    fn limits_are_plain_integers_within_bounds() {
        for (text, expected) in [("1", 1), ("200", 200), ("007", 7)] {
            let params = read(&format!("limit={text}")).unwrap();
            assert_eq!(params.limit(20, 200).unwrap(), expected);
        }
        for bad in [
            "0",
            "201",
            "-1",
            "%2B1",
            "1.0",
            "x",
            "",
            "99999999999999999999",
            "%201",
        ] {
            let params = read(&format!("limit={bad}")).unwrap();
            let problem = params.limit(20, 200).unwrap_err();
            assert!(problem.message.contains("1 to 200"), "{bad}");
        }
    }

    #[test]
    fn the_header_wins_over_the_parameter() {
        let mut headers = HeaderMap::new();
        assert_eq!(read("").unwrap().cursor(&headers).unwrap(), Seq(0));
        assert_eq!(read("after=7").unwrap().cursor(&headers).unwrap(), Seq(7));
        for same in [
            "lastEventId=7",
            "lastEventId=7&after=7",
            "after=7&lastEventId=007",
        ] {
            assert_eq!(read(same).unwrap().cursor(&headers).unwrap(), Seq(7));
        }
        headers.insert(LAST_EVENT_ID, "9".parse().unwrap());
        for params in ["after=7", "lastEventId=7"] {
            assert_eq!(read(params).unwrap().cursor(&headers).unwrap(), Seq(9));
        }
        headers.insert(LAST_EVENT_ID, "9007199254740992".parse().unwrap());
        let problem = read("after=7").unwrap().cursor(&headers).unwrap_err();
        assert_eq!(problem.code, ErrorCode::CursorInvalid);
        assert_eq!(problem.details[0].path, "Last-Event-ID");
    }

    #[test]
    fn two_names_of_one_cursor_must_not_contradict_each_other() {
        let mut headers = HeaderMap::new();
        for header in [None, Some("9")] {
            if let Some(value) = header {
                headers.insert(LAST_EVENT_ID, value.parse().unwrap());
            }
            let problem = read("after=7&lastEventId=8")
                .unwrap()
                .cursor(&headers)
                .unwrap_err();
            assert_eq!(problem.code, ErrorCode::ValidationFailed);
            assert!(
                problem.message.contains("lastEventId and after"),
                "{problem}"
            );
        }
        let problem = read("after=7&lastEventId=x")
            .unwrap()
            .cursor(&headers)
            .unwrap_err();
        assert_eq!(problem.code, ErrorCode::CursorInvalid);
        assert_eq!(problem.details[0].path, "lastEventId");
    }
}
