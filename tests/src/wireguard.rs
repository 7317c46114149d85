//! Who encrypts: what the machine can by itself, or what the one who runs the tests has chosen.

/// `kernel` or `userspace` if `FAASD_TEST_WIREGUARD` says so, and else `auto`.
///
/// # Panics
/// If it says something else.
#[must_use]
pub fn choice() -> &'static str {
    match std::env::var("FAASD_TEST_WIREGUARD").as_deref() {
        Ok("kernel") => "kernel",
        Ok("userspace") => "userspace",
        Err(_) | Ok("auto") => "auto",
        Ok(other) => panic!("FAASD_TEST_WIREGUARD is {other:?}, and not auto, kernel or userspace"),
    }
}

/// What comes of [`choice`]: `kernel` or `userspace`. Where the kernel can, it has its module by the time that an
/// interface is there.
#[must_use]
pub fn expected() -> &'static str {
    match choice() {
        "auto" if std::path::Path::new("/sys/module/wireguard").exists() => "kernel",
        "auto" => "userspace",
        chosen => chosen,
    }
}
