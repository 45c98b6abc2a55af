//! Random numbers of one machine, from the seed of the run.

use std::sync::{Mutex, PoisonError};

use proto_env::Random;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

/// Random number generator that gives the same bytes for the same seed.
pub struct SimRandom(Mutex<StdRng>);

impl SimRandom {
    /// Creates generator number `stream` of the run with this seed.
    pub fn new(seed: u64, stream: u64) -> Self {
        Self(Mutex::new(generator(seed, stream)))
    }
}

/// Returns generator number `stream` of a seed: one for each purpose, so that the streams are independent.
pub fn generator(seed: u64, stream: u64) -> StdRng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&stream.to_le_bytes());
    StdRng::from_seed(*blake3::hash(&key).as_bytes())
}

impl Random for SimRandom {
    fn fill(&self, buffer: &mut [u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_bytes_again_and_a_stream_others() {
        let draw = |seed, stream| SimRandom::new(seed, stream).u64();
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(1, 3));
        assert_ne!(draw(1, 2), draw(2, 2));
    }
}
