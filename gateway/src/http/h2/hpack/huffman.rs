//! Huffman code of strings (RFC 7541, section 5.2 and appendix B), decoded four bits at a time by a finite automaton.
//! The gateway does not encode by it: that costs more CPU time than it saves.

/// Number of bytes, and of inner nodes of the tree: it has a leaf for each byte, and one for the end of the string.
const NODES: usize = 256;
/// Number of bits of the longest code.
const MAX_BITS: u8 = 30;
/// Marks a child in the tree that is a leaf; its other bits are the byte.
const LEAF: u16 = 0x8000;
/// Leaf of the code that must not occur in a string.
const END_OF_STRING: u16 = LEAF | 0x100;

/// Number of bits of each byte's code. The code is canonical: codes of the same length are consecutive numbers, in the
/// order of the bytes, and shorter codes come first.
#[rustfmt::skip]
const CODE_BITS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5,
    6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23,
    23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22,
    22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26,
    27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25,
    25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

/// Transition of the automaton by four bits. No code is shorter than five, so that they complete one code at most.
#[derive(Debug, Clone, Copy)]
struct Transition {
    next: u8,
    byte: u8,
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    Nothing,
    Byte,
    /// The code of the end of the string occurs.
    Error,
}

type Tree = [[u16; 2]; NODES];

static TRANSITIONS: [[Transition; 16]; NODES] = transitions(&tree());
/// States in which a string may end: those reached by nothing but ones, fewer than eight (RFC 7541, section 5.2).
static MAY_END: [bool; NODES] = end_states(&tree());

/// Returns the code tree. Node 0 is the root.
#[expect(
    clippy::cast_possible_truncation,
    reason = "TryFrom is not const, and the values are below 257"
)]
const fn tree() -> Tree {
    let mut tree = [[0; 2]; NODES];
    let (mut nodes, mut code, mut bits) = (1, 0_u32, 0);
    while bits < MAX_BITS {
        (bits, code) = (bits + 1, code << 1);
        let mut byte = 0;
        while byte < NODES {
            if CODE_BITS[byte] == bits {
                (tree, nodes) = with_leaf(tree, nodes, code, bits, LEAF | byte as u16);
                code += 1;
            }
            byte += 1;
        }
    }
    (tree, nodes) = with_leaf(tree, nodes, code, bits, END_OF_STRING);
    assert!(nodes == NODES && code == (1 << MAX_BITS) - 1);
    tree
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "TryFrom is not const, and there are 256 nodes"
)]
const fn with_leaf(
    mut tree: Tree,
    mut nodes: usize,
    code: u32,
    bits: u8,
    leaf: u16,
) -> (Tree, usize) {
    let (mut node, mut bit) = (0, bits - 1);
    while bit > 0 {
        let branch = (code >> bit & 1) as usize;
        if tree[node][branch] == 0 {
            tree[node][branch] = nodes as u16;
            nodes += 1;
        }
        node = tree[node][branch] as usize;
        bit -= 1;
    }
    tree[node][(code & 1) as usize] = leaf;
    (tree, nodes)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "TryFrom is not const, and nodes and bytes are below 256"
)]
const fn transitions(tree: &Tree) -> [[Transition; 16]; NODES] {
    let nothing = Transition {
        next: 0,
        byte: 0,
        output: Output::Nothing,
    };
    let mut transitions = [[nothing; 16]; NODES];
    let mut start = 0;
    while start < NODES {
        let mut nibble = 0;
        while nibble < 16 {
            let (mut node, mut bit, mut transition) = (start, 4, nothing);
            while bit > 0 {
                bit -= 1;
                let child = tree[node][nibble >> bit & 1];
                if child == END_OF_STRING {
                    transition.output = Output::Error;
                    node = 0;
                } else if child & LEAF != 0 {
                    (transition.byte, transition.output) = (child as u8, Output::Byte);
                    node = 0;
                } else {
                    node = child as usize;
                }
            }
            transition.next = node as u8;
            transitions[start][nibble] = transition;
            nibble += 1;
        }
        start += 1;
    }
    transitions
}

const fn end_states(tree: &Tree) -> [bool; NODES] {
    let mut may_end = [false; NODES];
    let (mut node, mut bits) = (0, 0);
    while bits < 8 {
        may_end[node] = true;
        node = tree[node][1] as usize;
        bits += 1;
    }
    may_end
}

/// Appends the decoded string. Returns `None` if it is malformed.
pub(super) fn decode(encoded: &[u8], output: &mut Vec<u8>) -> Option<()> {
    // The shortest code has five bits.
    output.reserve(encoded.len() * 8 / 5);
    let mut state = 0;
    for byte in encoded {
        for nibble in [byte >> 4, byte & 0xf] {
            let transition = TRANSITIONS[usize::from(state)][usize::from(nibble)];
            match transition.output {
                Output::Nothing => {}
                Output::Byte => output.push(transition.byte),
                Output::Error => return None,
            }
            state = transition.next;
        }
    }
    MAY_END[usize::from(state)].then_some(())
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use proptest::prelude::*;

    use super::*;

    fn decoded(encoded: &[u8]) -> Option<Vec<u8>> {
        let mut output = Vec::new();
        decode(encoded, &mut output)?;
        Some(output)
    }

    /// Encodes by the code as appendix B gives it.
    fn encode(bytes: &[u8]) -> Vec<u8> {
        let mut order: Vec<usize> = (0..256).collect();
        order.sort_by_key(|byte| CODE_BITS[*byte]);
        let (mut codes, mut code, mut bits) = ([0_u32; 256], 0, 0);
        for byte in order {
            code <<= CODE_BITS[byte] - bits;
            bits = CODE_BITS[byte];
            codes[byte] = code;
            code += 1;
        }
        let mut text = String::new();
        for byte in bytes.iter().copied().map(usize::from) {
            let width = usize::from(CODE_BITS[byte]);
            write!(text, "{:0width$b}", codes[byte]).unwrap();
        }
        while !text.len().is_multiple_of(8) {
            text.push('1');
        }
        text.as_bytes()
            .chunks(8)
            .map(|bits| u8::from_str_radix(str::from_utf8(bits).unwrap(), 2).unwrap())
            .collect()
    }

    // RFC 7541, appendices C.4 and C.6.
    #[test]
    fn the_examples_of_the_rfc_are_decoded() {
        for (encoded, text) in [
            (
                &b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff"[..],
                "www.example.com",
            ),
            (b"\xa8\xeb\x10\x64\x9c\xbf", "no-cache"),
            (b"\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f", "custom-key"),
            (b"\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf", "custom-value"),
            (b"\x64\x02", "302"),
            (b"", ""),
        ] {
            assert_eq!(decoded(encoded).as_deref(), Some(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn wrong_padding_and_the_end_of_the_string_are_rejected() {
        // Padding by zeros, by a whole byte, and the code of the end of the string.
        for encoded in [
            &b"\xa8\xeb\x10\x64\x9c\xbe"[..],
            b"\x64\x02\xff",
            b"\xff\xff\xff\xff",
            b"\xff",
            b"\x00",
        ] {
            assert_eq!(decoded(encoded), None, "{encoded:x?}");
        }
    }

    proptest! {
        #[test]
        fn every_string_is_decoded_from_its_code(bytes: Vec<u8>) {
            prop_assert_eq!(decoded(&encode(&bytes)), Some(bytes));
        }
    }
}
