//! bcrypt for several passwords at once on one core, interleaved round by round.
//!
//! A single hash is bound by latency: each round of Blowfish depends on the one before, a chain of
//! loads and additions that leaves most of a core idle. Independent hashes fill those gaps, so
//! [`LANES`] of them take little longer than one. The results are those of bcrypt, bit for bit
//! (Provos and Mazières, "A Future-Adaptable Password Scheme", USENIX 1999, as implemented in
//! OpenBSD): `$2a$`, `$2b$` and `$2y$` are identical for passwords of at most 72 bytes.
//!
//! Like every implementation of bcrypt, it indexes tables with secret values. It does not branch on them.

#![expect(
    clippy::inline_always,
    reason = "a call between lanes would spill the halves of a block to memory"
)]

use std::hint::black_box;
use std::ops::ControlFlow;

use super::blowfish_tables;
use crate::domain::password_hash::BcryptDigest;

/// Maximum number of interleaved hashes. A lane's tables take 4 KiB, and a first-level data cache
/// has room for about eight. `make bench WHAT=auth-api` measures logins.
pub(super) const LANES: usize = 8;

/// Largest number of lanes at which the latency from round to round limits the speed; with more, the
/// number of instructions does.
const MAX_LATENCY_BOUND_LANES: usize = 4;

/// Maximum length of a key, with its terminating NUL: 18 words.
const MAX_KEY_BYTES: usize = 72;
/// Plaintext that bcrypt encrypts.
const PLAINTEXT: &[u8; 24] = b"OrpheanBeholderScryDoubt";
/// Number of times that the plaintext is encrypted.
const ENCRYPTIONS: usize = 64;

/// Password, salt and cost of one hash.
#[derive(Clone, Copy)]
pub(super) struct Lane {
    key: Key,
    salt: Key,
    cost: u32,
}

impl Lane {
    pub(super) fn new(password: &[u8], salt: [u8; 16], cost: u32) -> Self {
        Self {
            key: key(password),
            salt: words(salt.iter()),
            cost,
        }
    }
}

/// Digests of the lanes whose cost has just been reached, each with the index of its lane.
pub(super) type Reached<'a> = &'a mut dyn FnMut(&[(usize, BcryptDigest)]) -> ControlFlow<()>;

/// Hashes every lane, and goes on until as much work is done as for a hash of the cost `duration`: all
/// lanes take part until the end, so the time does not depend on their own costs. Calls `reached`
/// at each cost of a lane, in ascending order, and ends early if it returns [`ControlFlow::Break`].
///
/// # Panics
/// Panics if there are more than [`LANES`] lanes, or if a cost is above 31.
pub(super) fn digest(lanes: &[Lane], duration: u32, reached: Reached) {
    fn with_lanes<const N: usize>(lanes: &[Lane], duration: u32, reached: Reached) {
        let lanes = lanes.try_into().expect("the match has counted the lanes");
        digest_interleaved::<N>(lanes, duration, reached);
    }
    match lanes.len() {
        0 => {}
        1 => with_lanes::<1>(lanes, duration, reached),
        2 => with_lanes::<2>(lanes, duration, reached),
        3 => with_lanes::<3>(lanes, duration, reached),
        4 => with_lanes::<4>(lanes, duration, reached),
        5 => with_lanes::<5>(lanes, duration, reached),
        6 => with_lanes::<6>(lanes, duration, reached),
        7 => with_lanes::<7>(lanes, duration, reached),
        8 => with_lanes::<8>(lanes, duration, reached),
        more => panic!("{more} lanes, the maximum is {LANES}"),
    }
}

fn digest_interleaved<const N: usize>(lanes: &[Lane; N], duration: u32, reached: Reached) {
    let mut costs: Vec<u32> = lanes.iter().map(|lane| lane.cost).collect();
    costs.push(duration);
    costs.sort_unstable();
    costs.dedup();
    assert!(
        costs.iter().all(|cost| *cost < u32::BITS),
        "bcrypt's cost is at most 31"
    );
    let keys = lanes.map(|lane| lane.key);
    let salts = lanes.map(|lane| lane.salt);
    let mut ciphers = vec![Cipher::INITIAL; N].into_boxed_slice();
    let ciphers: &mut [Cipher; N] = (&mut *ciphers)
        .try_into()
        .expect("the vector has N elements");

    expand_key(ciphers, &keys, |lane, word| salts[lane][word]);
    let mut expansions = 0;
    for cost in costs {
        for _ in expansions..1_u32 << cost {
            expand_key(ciphers, &keys, |_, _| 0);
            expand_key(ciphers, &salts, |_, _| 0);
        }
        expansions = 1 << cost;
        let digests = encrypt_plaintext(ciphers);
        let of_this_cost: Vec<_> = (0..N)
            .filter(|lane| lanes[*lane].cost == cost)
            .map(|lane| (lane, digests[lane]))
            .collect();
        if reached(&of_this_cost).is_break() {
            return;
        }
    }
}

fn encrypt_plaintext<const N: usize>(ciphers: &[Cipher; N]) -> [BcryptDigest; N] {
    let mut texts: [[u32; 6]; N] = [words(PLAINTEXT.iter()); N];
    for at in [0, 2, 4] {
        let mut block = Block {
            left: std::array::from_fn(|lane| texts[lane][at]),
            right: std::array::from_fn(|lane| texts[lane][at + 1]),
        };
        for _ in 0..ENCRYPTIONS {
            block = block.encrypt(ciphers);
        }
        for (lane, text) in texts.iter_mut().enumerate() {
            text[at] = block.left[lane];
            text[at + 1] = block.right[lane];
        }
    }
    texts.map(bytes)
}

/// Key or salt as 18 words of 32 bits, one for each subkey of Blowfish.
type Key = [u32; 18];

/// Converts a password to a key: terminated by NUL, truncated to 72 bytes, repeated to fill them.
fn key(password: &[u8]) -> Key {
    words(password.iter().chain(&[0]).take(MAX_KEY_BYTES))
}

/// Reads big-endian words from the bytes, which are repeated cyclically.
fn words<'a, const W: usize>(bytes: impl Iterator<Item = &'a u8> + Clone) -> [u32; W] {
    let mut bytes = bytes.cycle();
    let mut next = || *bytes.next().expect("a key has at least one byte");
    std::array::from_fn(|_| u32::from_be_bytes(std::array::from_fn(|_| next())))
}

fn bytes(words: [u32; 6]) -> BcryptDigest {
    let mut digest = [0; 24];
    for (bytes, word) in digest.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

/// State of Blowfish: subkeys and S-boxes.
#[derive(Clone)]
struct Cipher {
    subkeys: [u32; 18],
    s_boxes: [[u32; 256]; 4],
}

impl Cipher {
    const INITIAL: Self = Self {
        subkeys: blowfish_tables::SUBKEYS,
        s_boxes: blowfish_tables::S_BOXES,
    };

    /// Blowfish's function F. A byte is a valid index of 256 elements, so no bounds checks are compiled.
    #[inline(always)]
    fn f(&self, half: u32) -> u32 {
        // `to_be_bytes` would add an instruction to the dependency chain.
        let byte = |shift: u32| (half >> shift & 0xff) as usize;
        let [a, b, c, d] = [byte(24), byte(16), byte(8), byte(0)];
        let sum = self.s_boxes[0][a].wrapping_add(self.s_boxes[1][b]);
        (sum ^ self.s_boxes[2][c]).wrapping_add(self.s_boxes[3][d])
    }
}

/// One 64-bit block per lane. Passed by value, so that it stays in registers.
#[derive(Clone, Copy)]
struct Block<const N: usize> {
    left: [u32; N],
    right: [u32; N],
}

impl<const N: usize> Block<N> {
    #[inline(always)]
    fn xor_salt(mut self, word: usize, salt: impl Fn(usize, usize) -> u32) -> Self {
        for lane in 0..N {
            self.left[lane] ^= salt(lane, word);
            self.right[lane] ^= salt(lane, word + 1);
        }
        self
    }

    /// Encrypts each lane's block with that lane's cipher, all lanes round by round.
    #[inline(always)]
    fn encrypt(self, ciphers: &[Cipher; N]) -> Self {
        let Self {
            mut left,
            mut right,
        } = self;
        let mut ordering = XorOrdering(0);
        for lane in 0..N {
            left[lane] ^= ciphers[lane].subkeys[0];
        }
        for round in (1..17).step_by(2) {
            for lane in 0..N {
                let subkey = ciphers[lane].subkeys[round];
                let f_output = ciphers[lane].f(left[lane]);
                right[lane] = ordering.xor::<N>(right[lane], subkey, f_output);
            }
            for lane in 0..N {
                let subkey = ciphers[lane].subkeys[round + 1];
                let f_output = ciphers[lane].f(right[lane]);
                left[lane] = ordering.xor::<N>(left[lane], subkey, f_output);
            }
        }
        for lane in 0..N {
            right[lane] ^= ciphers[lane].subkeys[17];
        }
        ordering.finish::<N>();
        Self {
            left: right,
            right: left,
        }
    }
}

/// Makes the compiler XOR a half and its subkey before the output of F is available.
///
/// The compiler reorders a chain of XORs, so that F's output, which is available last, is combined
/// first: one more operation in the dependency chain. It does not reorder a value with a second use,
/// so for a single lane the intermediate values are summed up.
struct XorOrdering(u32);

impl XorOrdering {
    #[inline(always)]
    fn xor<const N: usize>(&mut self, half: u32, subkey: u32, f_output: u32) -> u32 {
        if N > MAX_LATENCY_BOUND_LANES {
            return half ^ (f_output ^ subkey);
        }
        let combined = half ^ subkey;
        if N == 1 {
            self.0 = self.0.wrapping_add(combined);
        }
        combined ^ f_output
    }

    #[inline(always)]
    fn finish<const N: usize>(self) {
        if N == 1 {
            black_box(self.0);
        }
    }
}

/// Expands each lane's key and the four words of its salt into its cipher: `ExpandKey` of
/// `EksBlowfish`. Most of the time is spent here without a salt; that is a salt of zeros, which is
/// known at compile time.
#[inline(never)]
fn expand_key<const N: usize>(
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
    // The words of the salt are used cyclically, two per block.
    let mut word = 0;
    for at in (0..18).step_by(2) {
        block = block.xor_salt(word, &salt).encrypt(ciphers);
        word ^= 2;
        for (lane, cipher) in ciphers.iter_mut().enumerate() {
            cipher.subkeys[at] = block.left[lane];
            cipher.subkeys[at + 1] = block.right[lane];
        }
    }
    for s_box in 0..4 {
        for at in (0..256).step_by(2) {
            block = block.xor_salt(word, &salt).encrypt(ciphers);
            word ^= 2;
            for (lane, cipher) in ciphers.iter_mut().enumerate() {
                cipher.s_boxes[s_box][at] = block.left[lane];
                cipher.s_boxes[s_box][at + 1] = block.right[lane];
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

    /// From the published tests of jBCrypt and `crypt_blowfish`.
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

    /// Returns the digests in the order in which they are reached.
    fn digests(lanes: &[Lane], duration: u32) -> Vec<(usize, BcryptDigest)> {
        let mut all = Vec::new();
        digest(lanes, duration, &mut |reached| {
            all.extend_from_slice(reached);
            ControlFlow::Continue(())
        });
        all
    }

    #[test]
    fn the_published_vectors_hold_with_any_number_of_lanes() {
        for (password, hash) in VECTORS {
            let parts = HashParts::from_str(hash).unwrap();
            let cost = parts.get_cost();
            let lane = Lane::new(password.as_bytes(), parts.get_salt_raw(), cost);
            for count in 1..=LANES {
                for (_, digest) in digests(&vec![lane; count], cost) {
                    assert_eq!(BASE_64.encode(&digest[..23]), hash[29..], "{password}");
                }
            }
        }
    }

    #[test]
    fn the_work_is_that_of_the_duration_unless_it_is_ended_early() {
        let lanes = [5, 4, 6].map(|cost| Lane::new(b"a password", [0; 16], cost));
        let mut reached = Vec::new();
        digest(&lanes, 8, &mut |digests| {
            let lanes: Vec<_> = digests.iter().map(|(lane, _)| *lane).collect();
            reached.push(lanes);
            ControlFlow::Continue(())
        });
        assert_eq!(reached, [vec![1], vec![0], vec![2], vec![]]);
        let mut calls = 0;
        digest(&lanes, 31, &mut |_| {
            calls += 1;
            ControlFlow::Break(())
        });
        assert_eq!(calls, 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn each_lane_equals_the_result_of_the_bcrypt_crate(
            duration in 4_u32..8,
            inputs in prop::collection::vec(
                (prop::collection::vec(any::<u8>(), 0..100), any::<[u8; 16]>(), 4_u32..7),
                0..=LANES,
            ),
        ) {
            let lanes: Vec<_> = inputs
                .iter()
                .map(|(password, salt, cost)| Lane::new(password, *salt, *cost))
                .collect();
            let expected: Vec<_> = inputs
                .iter()
                .map(|(password, salt, cost)| {
                    let key: Vec<u8> = password.iter().chain(&[0]).copied().take(MAX_KEY_BYTES).collect();
                    bcrypt::bcrypt(*cost, *salt, &key)
                })
                .enumerate()
                .collect();
            let mut digests = digests(&lanes, duration);
            digests.sort_by_key(|(lane, _)| *lane);
            prop_assert_eq!(digests, expected);
        }
    }
}
