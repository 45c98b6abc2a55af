//! Randomness for ids, nonces and name suffixes. All code draws from `Env::random`.

use rand::TryRngCore;
use rand::rngs::OsRng;

/// The characters of Kubernetes' generated names: no vowels and no digits that look like them
/// (k8s.io/apimachinery/pkg/util/rand).
const SUFFIX_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// A source of random bytes.
pub trait Random: Send + Sync + 'static {
    /// Fills the whole buffer with random bytes.
    fn fill(&self, buffer: &mut [u8]);

    /// Returns a random number of 64 bits.
    fn u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Returns `length` random characters of the alphabet of Kubernetes' generated names.
    fn suffix(&self, length: usize) -> String {
        let mut out = String::with_capacity(length);
        while out.len() < length {
            let mut bytes = [0; 16];
            self.fill(&mut bytes);
            // 243 = 9 * 27: with higher bytes the first characters would be more frequent.
            let letters = bytes.iter().filter(|&&byte| byte < 243);
            for byte in letters.take(length - out.len()) {
                out.push(char::from(SUFFIX_ALPHABET[usize::from(byte % 27)]));
            }
        }
        out
    }

    /// Returns a version 4 UUID in its usual text form (RFC 9562).
    fn uuid(&self) -> String {
        let mut b = [0_u8; 16];
        self.fill(&mut b);
        b[6] = (b[6] & 0x0f) | 0x40;
        b[8] = (b[8] & 0x3f) | 0x80;
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        format!("{}-{}-{}-{}-{}", hex(&b[..4]), hex(&b[4..6]), hex(&b[6..8]), hex(&b[8..10]), hex(&b[10..]))
    }
}

/// The operating system's generator.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&self, buffer: &mut [u8]) {
        // getrandom fails only if the kernel has no generator at all, and then nothing can go on safely.
        if let Err(error) = OsRng.try_fill_bytes(buffer) {
            panic!("the operating system gives no random bytes: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suffix_has_the_length_and_letters_asked_for() {
        let suffix = SystemRandom.suffix(40);
        assert_eq!(suffix.len(), 40);
        assert!(suffix.bytes().all(|letter| SUFFIX_ALPHABET.contains(&letter)));
    }

    #[test]
    fn a_uuid_is_of_version_four() {
        let uuid = SystemRandom.uuid();
        assert_eq!(uuid.len(), 36);
        assert_eq!(&uuid[14..15], "4");
        assert!("89ab".contains(&uuid[19..20]));
        assert_ne!(uuid, SystemRandom.uuid());
    }
}
