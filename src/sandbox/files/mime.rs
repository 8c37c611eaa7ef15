//! What kind of file it is, by its bytes and its name.

/// By the last part of the name, in lower case.
const EXTENSIONS: &[(&str, &str)] = &[
    ("txt", "text/plain"),
    ("log", "text/plain"),
    ("md", "text/markdown"),
    ("markdown", "text/markdown"),
    ("csv", "text/csv"),
    ("tsv", "text/tab-separated-values"),
    ("html", "text/html"),
    ("htm", "text/html"),
    ("css", "text/css"),
    ("js", "text/javascript"),
    ("mjs", "text/javascript"),
    ("cjs", "text/javascript"),
    ("ts", "text/x-typescript"),
    ("tsx", "text/x-typescript"),
    ("jsx", "text/javascript"),
    ("py", "text/x-python"),
    ("rs", "text/x-rust"),
    ("go", "text/x-go"),
    ("c", "text/x-c"),
    ("h", "text/x-c"),
    ("cpp", "text/x-c++"),
    ("hpp", "text/x-c++"),
    ("java", "text/x-java"),
    ("rb", "text/x-ruby"),
    ("sh", "text/x-shellscript"),
    ("sql", "application/sql"),
    ("json", "application/json"),
    ("jsonl", "application/x-ndjson"),
    ("ndjson", "application/x-ndjson"),
    ("xml", "application/xml"),
    ("yaml", "application/yaml"),
    ("yml", "application/yaml"),
    ("toml", "application/toml"),
    ("ipynb", "application/x-ipynb+json"),
    ("svg", "image/svg+xml"),
    ("png", "image/png"),
    ("jpg", "image/jpeg"),
    ("jpeg", "image/jpeg"),
    ("gif", "image/gif"),
    ("webp", "image/webp"),
    ("bmp", "image/bmp"),
    ("ico", "image/x-icon"),
    ("tif", "image/tiff"),
    ("tiff", "image/tiff"),
    ("pdf", "application/pdf"),
    ("zip", "application/zip"),
    ("gz", "application/gzip"),
    ("tgz", "application/gzip"),
    ("tar", "application/x-tar"),
    (
        "docx",
        "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ),
    (
        "xlsx",
        "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ),
    (
        "pptx",
        "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    ),
    ("odt", "application/vnd.oasis.opendocument.text"),
    ("ods", "application/vnd.oasis.opendocument.spreadsheet"),
    ("epub", "application/epub+zip"),
    ("parquet", "application/vnd.apache.parquet"),
    ("sqlite", "application/vnd.sqlite3"),
    ("db", "application/vnd.sqlite3"),
    ("mp3", "audio/mpeg"),
    ("wav", "audio/wav"),
    ("ogg", "audio/ogg"),
    ("mp4", "video/mp4"),
    ("webm", "video/webm"),
    ("wasm", "application/wasm"),
    ("whl", "application/zip"),
    ("jar", "application/java-archive"),
    ("woff2", "font/woff2"),
    ("ttf", "font/ttf"),
];

/// The MIME type of a file with this name and these bytes.
///
/// Text has its type from its name. Of binary data the bytes know better than the name, unless all that they
/// say is that it is a ZIP archive, as many formats are.
pub fn mime_type(name: &str, bytes: &[u8]) -> &'static str {
    let extension = name
        .rsplit('/')
        .next()
        .and_then(|name| name.rsplit_once('.'))
        .map(|(_, extension)| extension.to_lowercase());
    let by_name = extension.and_then(|extension| {
        EXTENSIONS
            .iter()
            .find(|(known, _)| *known == extension)
            .map(|(_, mime)| *mime)
    });
    let is_text = std::str::from_utf8(bytes).is_ok() && !bytes.contains(&0);
    let beginning = bytes.get(..8192).unwrap_or(bytes);
    // Some formats begin with letters, as do texts.
    let is_plain = |b: &u8| !b.is_ascii_control() || b.is_ascii_whitespace();
    let is_plain = is_text && beginning.iter().all(is_plain);
    let by_bytes = infer::get(beginning)
        .map(|kind| kind.mime_type())
        .filter(|mime| !is_plain || *mime == "application/pdf");
    let by_name = by_name.filter(|mime| is_text || !mime.starts_with("text/"));
    match by_bytes {
        Some(mime) if mime != "application/zip" => mime,
        by_bytes => by_name.or(by_bytes).unwrap_or(if is_text {
            "text/plain"
        } else {
            "application/octet-stream"
        }),
    }
}
