//! Nkeys: the Ed25519 seeds of users, as text, and signatures with them.
//!
//! *Pure*. The form is that of the `nats-io/nkeys` README: base32 of a prefix,
//! 32 bytes and a CRC-16 (XMODEM, low byte first), without padding.

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use ring::signature::{Ed25519KeyPair, KeyPair};

/// `S`, in the upper five bits of the first byte.
const SEED: u8 = 18 << 3;
/// `U`, a user.
const USER: u8 = 20 << 3;

/// A user's key pair.
pub(super) struct UserKey(Ed25519KeyPair);

impl UserKey {
    /// Out of a user seed (`SU...`). The error never shows any of it.
    pub(super) fn from_seed(seed: &str) -> Result<UserKey, &'static str> {
        let raw = BASE32_NOPAD.decode(seed.as_bytes()).map_err(|_| "it is not base32")?;
        let (body, check) = raw.split_last_chunk::<2>().ok_or("it is too short")?;
        if crc16(body) != u16::from_le_bytes(*check) {
            return Err("its checksum is wrong");
        }
        let [first, second, key @ ..] = body else {
            return Err("it is too short");
        };
        if first & 0xf8 != SEED || (first & 7) << 5 | second >> 3 != USER {
            return Err("it is not the seed of a user (SU...)");
        }
        let pair = Ed25519KeyPair::from_seed_unchecked(key).map_err(|_| "it has a wrong length")?;
        Ok(UserKey(pair))
    }

    /// The public key (`U...`).
    pub(super) fn public_key(&self) -> String {
        let mut raw = vec![USER];
        raw.extend_from_slice(self.0.public_key().as_ref());
        raw.extend_from_slice(&crc16(&raw).to_le_bytes());
        BASE32_NOPAD.encode(&raw)
    }

    /// The signature of a server's nonce, as `CONNECT` carries it.
    pub(super) fn sign(&self, nonce: &str) -> String {
        BASE64URL_NOPAD.encode(self.0.sign(nonce.as_bytes()).as_ref())
    }
}

fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by the `nk` tool of nats-io/nkeys, and nowhere in use.
    const KEY: (&str, &str) = (
        "SUAMLK2ZNL35WSMW37E7UD4VZ7ELPKW7DHC3BWBSD2GCZ7IUQQXZIORRBU",
        "UCK5N7N66OBOINFXAYC2ACJQYFSOD4VYNU6APEJTAVFZB2SVHLKGEW7L",
    );

    #[test]
    fn a_seed_gives_its_public_key() {
        let (seed, public) = KEY;
        let key = UserKey::from_seed(seed).map_err(|why| panic!("{why}"));
        assert_eq!(key.map(|key| key.public_key()).unwrap_or_default(), public);
    }

    #[test]
    fn what_is_no_user_seed_is_refused() {
        let (seed, public) = KEY;
        let other = seed.replace("SUAML", "SUAMM");
        for (text, why) in [
            ("", "it is too short"),
            ("su", "it is not base32"),
            ("SUAMLK2ZNL35WSMW37E7UD4VZ7ELPKW7DHC3BWBSD2GCZ7IUQQXZIORRB", "it is not base32"),
            (other.as_str(), "its checksum is wrong"),
            (public, "it is not the seed of a user (SU...)"),
        ] {
            assert_eq!(UserKey::from_seed(text).map(|_| ()), Err(why), "{text}");
        }
    }

    #[test]
    fn a_signature_is_one_of_that_key() {
        use ring::signature::{ED25519, UnparsedPublicKey};
        let Ok(key) = UserKey::from_seed(KEY.0) else { panic!("a seed") };
        let signature = BASE64URL_NOPAD.decode(key.sign("nonce").as_bytes()).unwrap();
        let public = UnparsedPublicKey::new(&ED25519, key.0.public_key().as_ref().to_vec());
        assert!(public.verify(b"nonce", &signature).is_ok());
    }
}
