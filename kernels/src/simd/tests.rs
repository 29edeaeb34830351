use super::*;

/// Runs every operation on one instruction set and compares it with scalar code.
struct EveryOperation;

impl Job for EveryOperation {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let n = S::LANES;
        let a: Vec<f32> = (0..n).map(|i| 1.5 * i as f32 - 4.0).collect();
        let b: Vec<f32> = (0..n).map(|i| 7.0 - 2.25 * i as f32).collect();
        let out = |v: S::F| {
            let mut out = vec![0.0f32; n];
            // SAFETY: `out` has LANES elements.
            unsafe { simd.store(out.as_mut_ptr(), v) };
            out
        };
        // SAFETY: both have LANES elements.
        let (va, vb) = unsafe { (simd.load(a.as_ptr()), simd.load(b.as_ptr())) };
        let each = |f: &dyn Fn(f32, f32) -> f32| -> Vec<f32> { (0..n).map(|i| f(a[i], b[i])).collect() };
        assert_eq!(out(simd.add(va, vb)), each(&|x, y| x + y));
        assert_eq!(out(simd.sub(va, vb)), each(&|x, y| x - y));
        assert_eq!(out(simd.mul(va, vb)), each(&|x, y| x * y));
        assert_eq!(out(simd.div(va, vb)), each(&|x, y| x / y));
        assert_eq!(out(simd.sqrt(simd.mul(va, va))), each(&|x, _| x.abs()));
        assert_eq!(out(simd.sqrt(simd.splat(2.0))), each(&|_, _| 2f32.sqrt()));
        assert_eq!(out(simd.max(va, vb)), each(&f32::max));
        let edges = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1.0];
        for (x, y) in edges.iter().flat_map(|&x| edges.map(|y| (x, y))) {
            let larger = out(simd.larger(simd.splat(x), simd.splat(y)));
            let wanted = if x < y { y } else { x };
            assert!(larger.iter().all(|lane| lane.to_bits() == wanted.to_bits()), "{larger:?} of {x} and {y}");
        }
        assert_eq!(out(simd.fma(va, vb, simd.splat(0.5))), each(&|x, y| x * y + 0.5));
        assert_eq!(out(simd.select(simd.lt(va, vb), va, vb)), each(&f32::min));
        assert_eq!(simd.bits(simd.le(va, va)), ((1u64 << n) - 1) as u32);
        assert_eq!(simd.bits(simd.not(simd.eq(va, va))), 0);
        assert_eq!(simd.bits(simd.or(simd.lt(va, vb), simd.lt(vb, va))), simd.bits(simd.not(simd.eq(va, vb))));
        assert_eq!(simd.bits(simd.and(simd.lt(va, vb), simd.lt(vb, va))), 0);
        assert_eq!(out(simd.int_to_bits(simd.bits_to_int(va))), a);
        let seven = simd.splat_int(7);
        let sum = simd.sub_int(simd.add_int(simd.shl_int::<2>(seven), seven), simd.splat_int(-1));
        assert_eq!(out(simd.int_to_float(sum)), vec![36.0; n]);
        assert_eq!(out(simd.int_to_float(simd.shr_int::<1>(simd.splat_int(-7)))), vec![-4.0; n]);
        assert_eq!(out(simd.int_to_float(simd.and_int(simd.splat_int(6), simd.splat_int(3)))), vec![2.0; n]);
        assert_eq!(out(simd.int_to_float(simd.or_int(simd.splat_int(6), simd.splat_int(3)))), vec![7.0; n]);

        assert_eq!(out(simd.int_to_float(simd.xor_int(simd.splat_int(6), simd.splat_int(3)))), vec![5.0; n]);
        let factors: Vec<u32> = (0..n as u32).map(|i| 0x9E37_79B9u32.wrapping_mul(2 * i + 1)).collect();
        // SAFETY: there are LANES words, which are loaded as bits.
        let words = simd.bits_to_int(unsafe { simd.load(factors.as_ptr().cast()) });
        let bits = |v: S::I| -> Vec<u32> { out(simd.int_to_bits(v)).iter().map(|x| x.to_bits()).collect() };
        let products = simd.mul_even(words, simd.splat_int(0xD251_1F53u32 as i32));
        for (pair, got) in bits(products).chunks_exact(2).enumerate() {
            let product = u64::from(factors[2 * pair]) * 0xD251_1F53;
            assert_eq!(got, [product as u32, (product >> 32) as u32]);
        }
        for (pair, got) in bits(simd.odd_to_even(words)).chunks_exact(2).enumerate() {
            assert_eq!(got, [factors[2 * pair + 1], 0]);
        }
        for (pair, got) in bits(simd.join_even(words, products)).chunks_exact(2).enumerate() {
            assert_eq!(got, [factors[2 * pair], factors[2 * pair].wrapping_mul(0xD251_1F53)]);
        }

        let both: Vec<f32> = a.iter().chain(&b).copied().collect();
        let (even, odd) = simd.even_odd(va, vb);
        assert_eq!(out(even), both.iter().step_by(2).copied().collect::<Vec<_>>());
        assert_eq!(out(odd), both.iter().skip(1).step_by(2).copied().collect::<Vec<_>>());

        let (low, high) = simd.interleave(even, odd);
        assert_eq!([out(low), out(high)].concat(), both);

        let groups = |[even, odd]: [Vec<f32>; 2], width: usize| {
            for (parity, got) in [even, odd].into_iter().enumerate() {
                let wanted = (0..2 * n).filter(|i| i / width % 2 == parity).map(|i| both[i]);
                assert_eq!(got, wanted.collect::<Vec<_>>(), "groups of {width}");
            }
        };
        let of = |(even, odd): (S::F, S::F)| [out(even), out(odd)];
        groups(of(simd.groups::<1>(va, vb)), 1);
        groups(of(simd.groups::<2>(va, vb)), 2);
        if n > 4 {
            groups(of(simd.groups::<4>(va, vb)), 4);
        }
        if n > 8 {
            groups(of(simd.groups::<8>(va, vb)), 8);
        }

        assert_eq!(out(simd.swap_pairs(va)), (0..n).map(|i| a[i ^ 1]).collect::<Vec<_>>());

        let mut lines = vec![7.0f32; 3 * n];
        // SAFETY: from any address of `lines`, less than `n` elements lie before a vector that is aligned.
        unsafe {
            let to = lines.as_mut_ptr().add(lines.as_ptr().align_offset(n * size_of::<f32>()));
            simd.stream(to, va);
            simd.fence();
            assert_eq!(out(simd.load(to)), a[..n]);
            assert_eq!(*to.add(n), 7.0);
        }

        for first in 0..n + 2 {
            // SAFETY: at most LANES lanes are touched.
            unsafe {
                let loaded = out(simd.load_first(a.as_ptr(), first));
                assert!((0..n).all(|i| loaded[i] == if i < first { a[i] } else { 0.0 }));
                let mut stored = vec![9.0f32; n];
                simd.store_first(stored.as_mut_ptr(), first, va);
                assert!((0..n).all(|i| stored[i] == if i < first { a[i] } else { 9.0 }));
            }
        }

        let (from_stride, to_stride) = (n + 3, n + 1);
        let from: Vec<f32> = (0..n * from_stride).map(|i| i as f32).collect();
        let mut to = vec![-1.0f32; n * to_stride];
        // SAFETY: both hold LANES rows of LANES elements.
        unsafe { simd.transpose(from.as_ptr(), from_stride as isize, to.as_mut_ptr(), to_stride as isize) };
        for i in 0..n {
            for j in 0..n {
                assert_eq!(to[j * to_stride + i], from[i * from_stride + j]);
            }
        }
        assert!((0..n).all(|j| to[j * to_stride + n] == -1.0));

        // Rows that overlap: as much of each is left as the next does not cover.
        for overlapped in 1..n {
            let mut to = vec![-1.0f32; n * n];
            // SAFETY: as above; rows that are nearer to each other need less room.
            unsafe { simd.transpose(from.as_ptr(), from_stride as isize, to.as_mut_ptr(), overlapped as isize) };
            for j in 0..n {
                for i in 0..if j + 1 == n { n } else { overlapped } {
                    assert_eq!(to[j * overlapped + i], from[i * from_stride + j], "row {j} of {overlapped} floats");
                }
            }
        }
        simd.prefetch(a.as_ptr());
    }
}

#[test]
fn every_operation_agrees_with_scalar_code_on_every_instruction_set() {
    for isa in Isa::available() {
        dispatch(isa, EveryOperation);
    }
}

#[test]
fn an_instruction_set_that_the_cpu_lacks_is_an_error() {
    for isa in Isa::ALL {
        assert_eq!(isa.check("isa").is_ok(), isa.is_available());
        assert_eq!(isa.to_string().parse(), Ok(isa));
    }
    let error = "sse9".parse::<Isa>().unwrap_err();
    assert_eq!(error.to_string(), "KERNELS_ISA: expected avx512, avx2 or portable, given sse9");
}
