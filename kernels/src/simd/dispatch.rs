//! The run-time choice of the instruction set, and the one place where kernels are instantiated.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use super::Simd;
#[cfg(all(target_arch = "x86_64", not(kernels_avx512_only)))]
use super::avx2::Avx2;
#[cfg(all(target_arch = "x86_64", not(kernels_avx2_only)))]
use super::avx512::Avx512;
#[cfg(not(any(kernels_avx2_only, kernels_avx512_only)))]
use super::portable::Portable;
use crate::error::Error;

/// An instruction set that kernels are compiled for.
///
/// ```
/// use kernels::Isa;
/// let isa = Isa::choose()?; // the best that this CPU has, or what KERNELS_ISA asks for
/// assert!(isa.is_available());
/// # Ok::<(), kernels::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// 4 lanes through the crate `wide`: SSE2 on x86-64, NEON on AArch64, scalar code elsewhere.
    Portable,
    /// 8 lanes, AVX2 and FMA.
    Avx2,
    /// 16 lanes, AVX-512 F, VL, DQ and BW.
    Avx512,
}

/// The environment variable that overrides the choice: `avx512`, `avx2` or `portable`.
pub(crate) const ISA_VARIABLE: &str = "KERNELS_ISA";

impl Isa {
    /// Every instruction set, the widest first.
    pub const ALL: [Self; 3] = [Self::Avx512, Self::Avx2, Self::Portable];

    /// Whether this CPU, and the operating system, support all features that the kernels use.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => cfg!(not(any(kernels_avx2_only, kernels_avx512_only))),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => cfg!(not(kernels_avx512_only)) && has_avx2(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                cfg!(not(kernels_avx2_only))
                    && has_avx2()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512bw")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The instruction sets of this CPU, the widest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// The widest that this CPU has, or what the environment variable `KERNELS_ISA` asks for. Read once.
    ///
    /// # Errors
    /// [`Error::Isa`] when the variable names nothing known, or what this CPU lacks.
    pub fn choose() -> Result<Self, Error> {
        static CHOICE: OnceLock<Result<Isa, Error>> = OnceLock::new();
        let choice = CHOICE.get_or_init(|| match std::env::var(ISA_VARIABLE) {
            Ok(name) => name.parse::<Self>().and_then(|isa| isa.check(ISA_VARIABLE)),
            Err(_) => Ok(Self::available().next().unwrap_or(Self::Portable)),
        });
        match choice {
            Ok(isa) => Ok(*isa),
            Err(error) => Err(error.clone()),
        }
    }

    /// This instruction set, if the CPU has it.
    pub(crate) fn check(self, argument: &'static str) -> Result<Self, Error> {
        if self.is_available() {
            return Ok(self);
        }
        let names: Vec<String> = Self::available().map(|isa| isa.to_string()).collect();
        Err(Error::Isa { argument, expected: format!("one of {}", names.join(", ")), given: self.to_string() })
    }

    /// Lanes of a vector of floats.
    pub const fn lanes(self) -> usize {
        match self {
            Self::Portable => 4,
            Self::Avx2 => 8,
            Self::Avx512 => 16,
        }
    }

    /// `a * b + c` as a lane of this instruction set computes it: what is summed again by definition has the same bits.
    pub(crate) fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        let fused = self != Self::Portable || cfg!(target_feature = "fma") || cfg!(target_arch = "aarch64");
        if fused { a.mul_add(b, c) } else { a * b + c }
    }

    /// Vector registers.
    pub(crate) const fn registers(self) -> usize {
        match self {
            Self::Portable | Self::Avx2 => 16,
            Self::Avx512 => 32,
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        })
    }
}

impl FromStr for Isa {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|isa| isa.to_string() == name).ok_or_else(|| Error::Isa {
            argument: ISA_VARIABLE,
            expected: "avx512, avx2 or portable".into(),
            given: name.into(),
        })
    }
}

/// A kernel body, generic over the instruction set.
pub(crate) trait Job {
    /// What the body returns.
    type Output;
    /// The body. Must be `#[inline(always)]`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Runs a job on an instruction set: the only place where kernels meet CPU features.
///
/// # Panics
/// When the CPU lacks the instruction set. Public entry points check before ([`Isa::check`]); this is the
/// last line that keeps a safe caller from executing instructions that do not exist.
///
/// Built with `--cfg kernels_avx2_only` or `--cfg kernels_avx512_only`, it knows that set alone: a third of the time to
/// compile, for whoever tunes a kernel.
pub(crate) fn dispatch<J: Job>(isa: Isa, job: J) -> J::Output {
    assert!(isa.is_available(), "instruction set {isa} is not available");
    match isa {
        #[cfg(not(any(kernels_avx2_only, kernels_avx512_only)))]
        Isa::Portable => job.run(Portable),
        #[cfg(all(target_arch = "x86_64", not(kernels_avx512_only)))]
        // SAFETY: availability was just checked.
        Isa::Avx2 => unsafe { run_avx2(job) },
        #[cfg(all(target_arch = "x86_64", not(kernels_avx2_only)))]
        // SAFETY: availability was just checked.
        Isa::Avx512 => unsafe { run_avx512(job) },
        #[cfg(any(not(target_arch = "x86_64"), kernels_avx2_only, kernels_avx512_only))]
        _ => unreachable!("not available"),
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// # Safety
/// - The CPU has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[cfg(not(kernels_avx512_only))]
#[target_feature(enable = "avx2,fma")]
unsafe fn run_avx2<J: Job>(job: J) -> J::Output {
    // SAFETY: the caller vouches for the features.
    job.run(unsafe { Avx2::new() })
}

/// # Safety
/// - The CPU has AVX-512 F, VL, DQ and BW, AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[cfg(not(kernels_avx2_only))]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
unsafe fn run_avx512<J: Job>(job: J) -> J::Output {
    // SAFETY: the caller vouches for the features.
    job.run(unsafe { Avx512::new() })
}
