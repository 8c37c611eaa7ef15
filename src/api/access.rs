//! Who may call what.

/// A route of the API, for documentation and for tests that walk all of them.
#[derive(Clone, Copy, Debug)]
pub struct RouteDef {
    /// The method, in capitals.
    pub method: &'static str,
    /// The path, with `{parameters}`.
    pub path: &'static str,
    /// Who may call it.
    pub access: Access,
}

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody, from any web page too: load balancers poll it.
    Public,
    /// Holders of a key, if the server has one.
    Key,
    /// The handler decides: deliveries are signed.
    Signed,
}
