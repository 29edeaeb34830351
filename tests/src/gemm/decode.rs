//! From bytes to a matrix product.
//!
//! ```text
//! byte   0        1       2  3  4  5      6..         14..
//!        version  family  m  n  k  batch  4 x 2 bytes flags  epilogue  data  size  seed (4 bytes)
//!                                         lhs, rhs, out, residual
//! ```
//!
//! As for convolutions: a byte picks from a table of edges, reads past the end give 0, every string of bytes of a
//! known version is a valid product, dimensions are halved at random until the work is small, and tables are frozen
//! with the version.

use super::arrangement::Arrangement;
use super::case::{Along, Blocks, GemmCase, Packed};
use crate::data::random;
use crate::decode::{BOUND, Bytes, EXACT, activation};

/// The version that is written, and the only one that is read.
pub const VERSION: u8 = 0;
/// As many bytes as a case can use.
pub const MAX_LEN: usize = 22;

/// Multiplications of nearly all cases, of some, and of very few.
const WORK: [usize; 3] = [1 << 11, 1 << 14, 1 << 18];

const EDGES: [usize; 32] = [
    1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 23, 24, 25, 31, 32, 33, 47, 48, 49, 63, 64, 65, 97, 129,
    257,
];
const FEW: [usize; 8] = [1, 1, 2, 3, 4, 5, 6, 12];
const LONG: [usize; 16] = [63, 64, 65, 127, 129, 191, 255, 256, 257, 511, 513, 1023, 1025, 1500, 2049, 4100];
const BATCHES: [usize; 8] = [0, 1, 2, 3, 4, 5, 7, 13];
const GAPS: [usize; 8] = [0, 0, 0, 0, 1, 3, 5, 16];

/// The bytes of the `number`-th random case.
pub fn random_bytes(number: u64) -> [u8; MAX_LEN] {
    let mut bytes = std::array::from_fn(|i| (random(number, i as u64) >> 24) as u8);
    bytes[0] = VERSION;
    bytes
}

/// A valid case, or `None` for an unknown version.
pub fn gemm(data: &[u8]) -> Option<GemmCase> {
    let mut bytes = Bytes::new(data);
    if bytes.byte() != VERSION {
        return None;
    }
    let family = bytes.byte() & 15;
    let picks: [u8; 3] = std::array::from_fn(|_| bytes.byte());
    let from = |table: &[usize], axis: usize| table[usize::from(picks[axis]) & (table.len() - 1)];
    let [m, n, k] = [0, 1, 2].map(|axis| from(&EDGES, axis));
    let mut case = match family {
        // A few rows, a few columns, a shallow product, a deep one.
        0 => GemmCase::new(from(&FEW, 0), from(&LONG, 1), k),
        1 => GemmCase::new(from(&LONG, 0), from(&FEW, 1), k),
        2 => GemmCase::new(from(&LONG, 0), n, from(&FEW, 2)),
        3 => GemmCase::new(m, from(&LONG, 1), from(&FEW, 2)),
        4 => GemmCase::new(from(&FEW, 0), n, from(&LONG, 2)),
        5 => GemmCase::new(m, from(&FEW, 1), from(&LONG, 2)),
        // Nothing, or chains without a term.
        6 if picks[2] & 64 != 0 => GemmCase::new(m, n, 0),
        6 if picks[2] & 128 != 0 => GemmCase::new(0, n, k),
        6 => GemmCase::new(m, 0, k),
        _ => GemmCase::new(m, n, k),
    };
    let batch = bytes.byte();
    if batch & 3 == 3 {
        case.batch = Some(BATCHES[usize::from(batch >> 2) & 7]);
    }
    case.lhs = arrangement(&mut bytes);
    case.rhs = arrangement(&mut bytes);
    case.out = Arrangement { repeated: [false; 2], shared: false, ..arrangement(&mut bytes) };
    let residual = Arrangement { shared: false, ..arrangement(&mut bytes) };
    let flags = bytes.byte();
    case.accumulate = flags & 1 != 0;
    case.residual = (flags & 6 == 6).then_some(residual);
    case.bias = [Along::None, Along::None, Along::Rows, Along::Columns][usize::from(flags >> 3) & 3];
    case.packed = match flags >> 5 & 3 {
        _ if case.batch.is_some() => Packed::None,
        2 => Packed::Lhs,
        3 => Packed::Rhs,
        _ => Packed::None,
    };
    let epilogue = bytes.byte();
    case.activation = activation(epilogue);
    case.blocks = Blocks::ALL[usize::from(epilogue >> 4) & 3];
    let kind = bytes.byte();
    case.data = if kind & 0x30 == 0x30 { BOUND[usize::from(kind & 7)] } else { EXACT[usize::from(kind & 7)] };
    let work = match bytes.byte() {
        0..224 => WORK[0],
        224..254 => WORK[1],
        _ => WORK[2],
    };
    case.seed = u64::from(bytes.word());
    shrink_to(&mut case, work);
    Some(case)
}

/// Half of them are dense, by rows or by columns.
fn arrangement(bytes: &mut Bytes) -> Arrangement {
    let (lengths, turns) = (bytes.byte(), bytes.byte());
    let mut arrangement = Arrangement { by_columns: lengths & 1 != 0, ..Arrangement::default() };
    if lengths & 2 != 0 {
        arrangement.gap = GAPS[usize::from(lengths >> 2) & 7];
        arrangement.skip = [0, 0, 0, 0, 0, 0, 1, 2][usize::from(lengths >> 5) & 7];
        arrangement.reversed = [turns & 7 == 1, turns & 7 == 2];
        arrangement.repeated = [turns >> 3 & 7 == 1, turns >> 3 & 7 == 2];
    }
    arrangement.shared = turns >> 6 == 3;
    arrangement
}

/// Halves dimensions until neither work nor an operand exceeds the limit.
fn shrink_to(case: &mut GemmCase, work: usize) {
    for step in 0.. {
        let GemmCase { m, n, k, .. } = *case;
        let batch = case.batch.unwrap_or(1);
        if batch * m * n * k <= work && batch * (m * k).max(k * n).max(m * n) <= work {
            break;
        }
        let dimension = match random(case.seed, step) % 4 {
            0 => &mut case.m,
            1 => &mut case.n,
            2 => &mut case.k,
            _ => match &mut case.batch {
                Some(batch) => batch,
                None => continue,
            },
        };
        *dimension = (*dimension / 2).max(usize::from(*dimension > 0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_is_a_case_whose_line_leads_back_to_it() {
        for number in 0..20_000u64 {
            let bytes = random_bytes(number);
            let case = gemm(&bytes[..number as usize % (MAX_LEN + 1)]).unwrap();
            assert_eq!(case.to_string().parse(), Ok(case));
        }
        assert_eq!(gemm(&[VERSION + 1]), None);
    }

    #[test]
    fn the_edges_that_matter_are_all_reached() {
        let mut seen = [false; 12];
        for number in 0..4_000 {
            let case = gemm(&random_bytes(number)).unwrap();
            let is_real = case.m * case.n * case.k > 0;
            for (at, reached) in [
                case.k == 0 && case.m * case.n > 0,
                case.m == 0,
                case.batch == Some(0),
                case.batch.is_some_and(|batch| batch > 2) && case.lhs.shared && is_real,
                case.packed == Packed::Lhs && case.lhs.by_columns && is_real,
                case.packed == Packed::Rhs && case.rhs.reversed[0] && is_real,
                case.accumulate && case.out.skip > 0 && is_real,
                case.residual.is_some_and(|lies| lies.repeated[0]) && case.out.by_columns,
                case.lhs.repeated[1] && case.k > 16,
                case.m == 1 && case.n > 500,
                case.k > 1000,
                case.m > 1000,
            ]
            .into_iter()
            .enumerate()
            {
                seen[at] |= reached;
            }
        }
        assert_eq!(seen, [true; 12]);
    }
}
