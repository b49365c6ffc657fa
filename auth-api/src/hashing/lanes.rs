//! bcrypt, several hashes in step on one core.
//!
//! One hash spends its time waiting: each round of Blowfish needs the result of the one before,
//! a chain of loads and additions that leaves most of a core idle. Hashes that have nothing to do
//! with each other fill those gaps, so [`LANES`] of them take little longer than one. The
//! algorithm is bcrypt's own, to the bit (Provos and Mazières, "A Future-Adaptable Password
//! Scheme", USENIX 1999, as OpenBSD has it): `$2a$`, `$2b$` and `$2y$` are one for passwords of at
//! most 72 bytes.
//!
//! Like every bcrypt, it looks up tables by secret values; it branches on none.

#![expect(
    clippy::inline_always,
    reason = "a call between lanes would put the halves of a block into memory"
)]

use std::hint::black_box;

use super::pi;

/// The most hashes worth doing in step: a lane's tables take 4 KiB, and a core's first-level cache
/// holds eight such and little more. `make bench WHAT=auth-api` measures logins.
pub(crate) const LANES: usize = 8;

/// With so many lanes or fewer the chain from round to round is what takes the time, with more it is the
/// number of instructions.
const FEW: usize = 4;

/// The longest key that bcrypt reads, its closing NUL included, is 18 words.
const KEY_BYTES: usize = 72;
const TEXT: &[u8; 24] = b"OrpheanBeholderScryDoubt";
/// How often the text is encrypted in the end.
const ENCRYPTIONS: usize = 64;

/// One hash to be made: a password with its salt.
#[derive(Clone, Copy)]
pub(crate) struct Lane<'a> {
    pub(crate) password: &'a [u8],
    pub(crate) salt: [u8; 16],
}

/// The raw hash, of which bcrypt's text form keeps the first 23 bytes.
pub(crate) type Digest = [u8; 24];

/// Hashes every lane at `cost`, in step.
///
/// # Panics
/// When there are more lanes than [`LANES`], or `cost` is above 31.
pub(crate) fn digest(cost: u32, lanes: &[Lane]) -> Vec<Digest> {
    fn of<const N: usize>(cost: u32, lanes: &[Lane]) -> Vec<Digest> {
        let lanes = lanes.try_into().expect("the match counted the lanes");
        in_step::<N>(cost, lanes).into()
    }
    match lanes.len() {
        0 => Vec::new(),
        1 => of::<1>(cost, lanes),
        2 => of::<2>(cost, lanes),
        3 => of::<3>(cost, lanes),
        4 => of::<4>(cost, lanes),
        5 => of::<5>(cost, lanes),
        6 => of::<6>(cost, lanes),
        7 => of::<7>(cost, lanes),
        8 => of::<8>(cost, lanes),
        more => panic!("{more} lanes, where {LANES} is the most"),
    }
}

fn in_step<const N: usize>(cost: u32, lanes: &[Lane; N]) -> [Digest; N] {
    assert!(cost < u32::BITS, "bcrypt's cost is at most 31");
    let keys: [Key; N] = std::array::from_fn(|lane| key(lanes[lane].password));
    let salts: [Key; N] = std::array::from_fn(|lane| words(lanes[lane].salt.iter()));
    let mut ciphers = vec![Cipher::INITIAL; N].into_boxed_slice();
    let ciphers: &mut [Cipher; N] = (&mut *ciphers).try_into().expect("it was made of N");

    schedule(ciphers, &keys, |lane, word| salts[lane][word]);
    for _ in 0..1_u32 << cost {
        schedule(ciphers, &keys, |_, _| 0);
        schedule(ciphers, &salts, |_, _| 0);
    }

    let mut texts: [[u32; 6]; N] = [words(TEXT.iter()); N];
    for at in [0, 2, 4] {
        let mut block = Block {
            left: std::array::from_fn(|lane| texts[lane][at]),
            right: std::array::from_fn(|lane| texts[lane][at + 1]),
        };
        for _ in 0..ENCRYPTIONS {
            block = block.encrypted(ciphers);
        }
        for (lane, text) in texts.iter_mut().enumerate() {
            text[at] = block.left[lane];
            text[at + 1] = block.right[lane];
        }
    }
    texts.map(bytes)
}

/// 72 bytes of key or salt, as Blowfish reads them: as many as it has subkeys.
type Key = [u32; 18];

/// A password as a key: closed by a NUL, cut at 72 bytes, repeated to fill them.
fn key(password: &[u8]) -> Key {
    words(password.iter().chain(&[0]).take(KEY_BYTES))
}

/// Big-endian words of the bytes, begun again when they end.
fn words<'a, const W: usize>(bytes: impl Iterator<Item = &'a u8> + Clone) -> [u32; W] {
    let mut bytes = bytes.cycle();
    let mut next = || *bytes.next().expect("a key has a byte");
    std::array::from_fn(|_| u32::from_be_bytes(std::array::from_fn(|_| next())))
}

fn bytes(words: [u32; 6]) -> Digest {
    let mut digest = [0; 24];
    for (bytes, word) in digest.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

/// Blowfish's state: subkeys and boxes.
#[derive(Clone)]
struct Cipher {
    subkeys: [u32; 18],
    boxes: [[u32; 256]; 4],
}

impl Cipher {
    const INITIAL: Self = Self {
        subkeys: pi::SUBKEYS,
        boxes: pi::BOXES,
    };

    /// Blowfish's F. A byte is always within a box of 256: the compiler leaves the bounds checks out.
    #[inline(always)]
    fn mix(&self, half: u32) -> u32 {
        // Not by `to_be_bytes`: that would be an instruction more in the chain from round to round.
        let byte = |shift: u32| (half >> shift & 0xff) as usize;
        let [a, b, c, d] = [byte(24), byte(16), byte(8), byte(0)];
        let sum = self.boxes[0][a].wrapping_add(self.boxes[1][b]);
        (sum ^ self.boxes[2][c]).wrapping_add(self.boxes[3][d])
    }
}

/// One block of 64 bits for each lane. It goes by value, so that it stays in registers.
#[derive(Clone, Copy)]
struct Block<const N: usize> {
    left: [u32; N],
    right: [u32; N],
}

impl<const N: usize> Block<N> {
    #[inline(always)]
    fn salted(mut self, word: usize, salt: impl Fn(usize, usize) -> u32) -> Self {
        for lane in 0..N {
            self.left[lane] ^= salt(lane, word);
            self.right[lane] ^= salt(lane, word + 1);
        }
        self
    }

    /// Encrypts each lane's block with that lane's cipher, all lanes round by round.
    #[inline(always)]
    fn encrypted(self, ciphers: &[Cipher; N]) -> Self {
        let Self {
            mut left,
            mut right,
        } = self;
        let mut early = Early(0);
        for lane in 0..N {
            left[lane] ^= ciphers[lane].subkeys[0];
        }
        for round in (1..17).step_by(2) {
            for lane in 0..N {
                let subkey = ciphers[lane].subkeys[round];
                let mixed = ciphers[lane].mix(left[lane]);
                right[lane] = early.xor::<N>(right[lane], subkey, mixed);
            }
            for lane in 0..N {
                let subkey = ciphers[lane].subkeys[round + 1];
                let mixed = ciphers[lane].mix(right[lane]);
                left[lane] = early.xor::<N>(left[lane], subkey, mixed);
            }
        }
        for lane in 0..N {
            right[lane] ^= ciphers[lane].subkeys[17];
        }
        early.end::<N>();
        Self {
            left: right,
            right: left,
        }
    }
}

/// Has a half and its subkey put together while what is mixed is still to come.
///
/// The compiler orders a chain of XORs as it likes, and puts what comes last in the middle: a step more
/// from round to round. It leaves alone what is used a second time, so that a lone lane's are summed up.
struct Early(u32);

impl Early {
    #[inline(always)]
    fn xor<const N: usize>(&mut self, half: u32, subkey: u32, mixed: u32) -> u32 {
        if N > FEW {
            return half ^ (mixed ^ subkey);
        }
        let kept = half ^ subkey;
        if N == 1 {
            self.0 = self.0.wrapping_add(kept);
        }
        kept ^ mixed
    }

    #[inline(always)]
    fn end<const N: usize>(self) {
        if N == 1 {
            black_box(self.0);
        }
    }
}

/// Runs each lane's key, and the four words of its salt, into its cipher: `EksBlowfish`'s
/// `ExpandKey`. A salt of zeros is none, and known to be when this is compiled, where the time goes.
#[inline(never)]
fn schedule<const N: usize>(
    ciphers: &mut [Cipher; N],
    keys: &[Key; N],
    salt: impl Fn(usize, usize) -> u32,
) {
    for (cipher, key) in ciphers.iter_mut().zip(keys) {
        for (subkey, word) in cipher.subkeys.iter_mut().zip(key) {
            *subkey ^= word;
        }
    }
    let mut block = Block {
        left: [0; N],
        right: [0; N],
    };
    // The salt's four words are taken in turn, two a block.
    let mut word = 0;
    for at in (0..18).step_by(2) {
        block = block.salted(word, &salt).encrypted(ciphers);
        word ^= 2;
        for (lane, cipher) in ciphers.iter_mut().enumerate() {
            cipher.subkeys[at] = block.left[lane];
            cipher.subkeys[at + 1] = block.right[lane];
        }
    }
    for number in 0..4 {
        for at in (0..256).step_by(2) {
            block = block.salted(word, &salt).encrypted(ciphers);
            word ^= 2;
            for (lane, cipher) in ciphers.iter_mut().enumerate() {
                cipher.boxes[number][at] = block.left[lane];
                cipher.boxes[number][at + 1] = block.right[lane];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use base64::Engine as _;
    use bcrypt::{BASE_64, HashParts};
    use proptest::prelude::*;

    use super::*;

    /// From jBCrypt's and `crypt_blowfish`'s published tests.
    const VECTORS: &[(&str, &str)] = &[
        (
            "",
            "$2a$06$DCq7YPn5Rq63x1Lad4cll.TV4S6ytwfsfvkgY8jIucDrjc8deX1s.",
        ),
        (
            "a",
            "$2a$06$m0CrhHm10qJ3lXRY.5zDGO3rS2KdeeWLuGmsfGlMfOxih58VYVfxe",
        ),
        (
            "abc",
            "$2a$06$If6bvum7DFjUnE9p2uDeDu0YHzrHM6tf.iqN8.yx.jNN1ILEf7h0i",
        ),
        (
            "abcdefghijklmnopqrstuvwxyz",
            "$2a$06$.rCVZVOThsIa97pEDOxvGuRRgzG64bvtJ0938xuqzv18d3ZpQhstC",
        ),
        (
            "~!@#$%^&*()      ~!@#$%^&*()PNBFRD",
            "$2a$06$fPIsBO8qRqkjj273rfaOI.HtSV9jLDpTbZn782DC6/t7qT67P6FfO",
        ),
        (
            "U*U",
            "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
        ),
        (
            "U*U*U",
            "$2a$05$XXXXXXXXXXXXXXXXXXXXXOAcXxm9kjPGEMsLznoKqmqw7tc8WCx4a",
        ),
        (
            "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789chars after 72 are ignored",
            "$2a$05$abcdefghijklmnopqrstuu5s2v8.iXieOjg/.AySBTTZIIVFJeBui",
        ),
    ];

    #[test]
    fn the_published_vectors_hold_in_every_number_of_lanes() {
        for (password, hash) in VECTORS {
            let parts = HashParts::from_str(hash).unwrap();
            let lane = Lane {
                password: password.as_bytes(),
                salt: parts.get_salt_raw(),
            };
            for count in 1..=LANES {
                for digest in digest(parts.get_cost(), &vec![lane; count]) {
                    assert_eq!(BASE_64.encode(&digest[..23]), hash[29..], "{password}");
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn lanes_of_mixed_content_are_what_the_crate_makes_of_each(
            cost in 4_u32..7,
            inputs in prop::collection::vec(
                (prop::collection::vec(any::<u8>(), 0..100), any::<[u8; 16]>()),
                0..=LANES,
            ),
        ) {
            let lanes: Vec<_> = inputs
                .iter()
                .map(|(password, salt)| Lane { password, salt: *salt })
                .collect();
            let expected: Vec<_> = inputs
                .iter()
                .map(|(password, salt)| {
                    let closed: Vec<u8> = password.iter().chain(&[0]).copied().take(KEY_BYTES).collect();
                    bcrypt::bcrypt(cost, *salt, &closed)
                })
                .collect();
            prop_assert_eq!(digest(cost, &lanes), expected);
        }
    }
}
