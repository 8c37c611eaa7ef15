//! How the process gives memory back: the one setting of the C library's allocator.
#![cfg_attr(
    all(target_os = "linux", target_env = "gnu"),
    expect(
        unsafe_code,
        reason = "one call with two numbers, before there is a second thread; there is no safe wrapper of it"
    )
)]

/// What has so many bytes is mapped by itself, and is the system's again as soon as it is let go.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE: libc::c_int = 128 * 1024;

/// Lets large pieces of memory be given back at once. By itself glibc takes the size from which it maps pieces up to
/// 32 MiB as they are freed; then images and requests lie between small things, and a server keeps for ever what its
/// largest runs held for a moment, once for each of its threads.
pub(super) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` takes two numbers, and no other thread allocates yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}
