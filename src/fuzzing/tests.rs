//! Replays the corpora of the fuzz targets, and random inputs, on stable.

use std::{fs, path::Path};

use super::targets;

/// Runs each file of the corpus of `name`, and `random` inputs from a fixed seed.
fn replay(name: &str, random: usize, target: fn(&[u8])) {
    // Absent in the published package.
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(name);
    for entry in fs::read_dir(&corpus).into_iter().flatten() {
        let input = fs::read(entry.unwrap().path()).unwrap();
        target(&input);
    }
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..random {
        let bits = rng.u32(0..=10);
        let length = rng.usize(0..=1 << bits);
        let mut input = vec![0; length];
        rng.fill(&mut input);
        // Many zeros and small numbers, which decode to common cases.
        let mask = rng.u8(..);
        if rng.bool() {
            input.iter_mut().for_each(|byte| *byte &= mask);
        }
        target(&input);
    }
}

macro_rules! replay {
    ($($(#[$meta:meta])* $target:ident: $random:literal,)*) => {$(
        $(#[$meta])*
        #[test]
        fn $target() {
            replay(stringify!($target), $random, targets::$target);
        }
    )*};
}

replay! {
    retry_after: 2000,
    rate_limit_headers: 2000,
    www_authenticate: 2000,
    json_error: 1000,
    api_error: 1000,
    saved_head: 1000,
    replay_body: 2000,
    rate_gate: 1000,
    conversation: 2000,
    #[cfg(feature = "serde")]
    settings: 1000,
}
