//! Which CPU this is: what blocking sizes depend on. Read from CPUID, never measured.

use std::sync::OnceLock;

/// Families of CPUs that have blocking sizes of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cpu {
    /// AMD family 19h and later with less than 1 MiB of L2: 32 KiB L1d, 512 KiB L2.
    Zen3,
    /// AMD family 19h and later with AVX-512, which virtual machines may hide, or 1 MiB of L2: 32 to 48 KiB L1d.
    Zen4,
    /// Intel's servers with AVX-512 and AMX: 48 KiB L1d, 2 MiB L2, a slow L3.
    SapphireRapids,
    /// Every other.
    Other,
}

/// The CPU that runs this program.
pub(crate) fn cpu() -> Cpu {
    static CPU: OnceLock<Cpu> = OnceLock::new();
    *CPU.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Cpu {
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    let vendor = __cpuid(0);
    let is = |name: &[u8; 12]| {
        let word = |at: usize| u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
        (vendor.ebx, vendor.edx, vendor.ecx) == (word(0), word(4), word(8))
    };
    let version = __cpuid(1).eax;
    let family = (version >> 8 & 0xf) + (version >> 20 & 0xff);
    let avx512 = is_x86_feature_detected!("avx512f");
    if is(b"AuthenticAMD") && family >= 0x19 {
        let l2_kib = if __cpuid(0x8000_0000).eax >= 0x8000_0006 { __cpuid(0x8000_0006).ecx >> 16 } else { 0 };
        return if avx512 || l2_kib >= 1024 { Cpu::Zen4 } else { Cpu::Zen3 };
    }
    let amx_tile = vendor.eax >= 7 && __cpuid_count(7, 0).edx >> 24 & 1 == 1;
    if is(b"GenuineIntel") && avx512 && amx_tile { Cpu::SapphireRapids } else { Cpu::Other }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Cpu {
    Cpu::Other
}
