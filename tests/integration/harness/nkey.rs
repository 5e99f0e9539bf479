//! Nkeys of the tests' own, so that a mistake in the program's would show.

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use ring::signature::{Ed25519KeyPair, KeyPair as _};

/// Whose key it is: its letter, in the upper five bits of a byte.
#[derive(Clone, Copy)]
pub enum KeyPairType {
    Operator = 14 << 3,
    Account = 0,
    User = 20 << 3,
}

/// A key pair out of 32 bytes.
pub struct KeyPair {
    kind: KeyPairType,
    raw: [u8; 32],
    pair: Ed25519KeyPair,
}

impl KeyPair {
    pub fn new(kind: KeyPairType, raw: [u8; 32]) -> KeyPair {
        let pair = Ed25519KeyPair::from_seed_unchecked(&raw).expect("32 bytes are a key");
        KeyPair { kind, raw, pair }
    }

    pub fn public_key(&self) -> String {
        checked([&[self.kind as u8], self.pair.public_key().as_ref()].concat())
    }

    pub fn seed(&self) -> String {
        let kind = self.kind as u8;
        checked([&[18 << 3 | kind >> 5, (kind & 31) << 3], &self.raw[..]].concat())
    }

    pub fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        self.pair.sign(bytes).as_ref().to_vec()
    }

    /// A JWT with these claims, signed by this key.
    pub fn jwt(&self, claims: &serde_json::Value) -> String {
        let header = BASE64URL_NOPAD.encode(br#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
        let body = format!("{header}.{}", BASE64URL_NOPAD.encode(claims.to_string().as_bytes()));
        format!("{body}.{}", BASE64URL_NOPAD.encode(&self.sign(body.as_bytes())))
    }
}

/// In base32, with a CRC-16 (XMODEM) at its end.
fn checked(mut bytes: Vec<u8>) -> String {
    let mut crc = 0_u16;
    for byte in &bytes {
        crc ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 };
        }
    }
    bytes.extend_from_slice(&crc.to_le_bytes());
    BASE32_NOPAD.encode(&bytes)
}
