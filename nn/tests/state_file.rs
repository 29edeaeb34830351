//! Files of state, mapped: what is wrong with one is an error that names it, and a network takes no more memory to load
//! than it has parameters.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use nn::{Error, Linear, Network, Random, Result, Sequential, StateDict, StateFile};

/// Counts the bytes that are allocated, and the most that there ever were. Other tests of this file run meanwhile, so
/// they are all in one.
struct Measuring;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Measuring {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(now, Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Measuring = Measuring;

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn network(size: usize, seed: u64) -> Result<Network> {
    let random = &mut Random::new(seed);
    let layers = Sequential::new().with(Linear::new(size, size, random)?)?.with(Linear::new(size, 3, random)?)?;
    Ok(Network::new(layers))
}

#[test]
fn mapped_files_are_checked_and_copied_straight_into_the_network() -> Result<()> {
    cut_and_garbled_files_are_errors_and_change_nothing()?;
    tensors_that_do_not_fit_are_named()?;
    sizes_near_the_end_of_the_numbers_are_no_panic();
    loading_takes_no_memory_but_the_networks()
}

fn cut_and_garbled_files_are_errors_and_change_nothing() -> Result<()> {
    let (path, state) = (file("mapped.safetensors"), network(4, 1)?.state_dict());
    state.save(&path)?;
    let bytes = fs::read(&path).unwrap();
    let mut other = network(4, 2)?;
    let before = other.state_dict();
    for len in 0..bytes.len() {
        fs::write(&path, &bytes[..len]).unwrap();
        let error = other.load_file(&path).unwrap_err();
        assert!(matches!(error, Error::File { .. }), "cut after {len}: {error}");
        assert!(error.to_string().contains("mapped.safetensors"), "cut after {len}: {error}");
    }
    assert!(other.state_dict() == before);

    let random = &mut Random::new(9);
    for round in 0..500 {
        let mut changed = bytes.clone();
        for _ in 0..1 + random.below(3) {
            let at = random.below(changed.len().min(400));
            changed[at] = random.bits() as u8;
        }
        fs::write(&path, &changed).unwrap();
        // Either an error or other numbers, and the same from memory.
        let (mapped, read) = (StateFile::open(&path).and_then(|file| file.under("")), StateDict::from_bytes(&changed));
        assert_eq!(mapped.is_ok(), read.is_ok(), "round {round}");
        let before = other.state_dict();
        let loaded = other.load_file(&path);
        assert!(loaded.is_ok() || other.state_dict() == before, "round {round}: {loaded:?}");
    }
    Ok(())
}

fn tensors_that_do_not_fit_are_named() -> Result<()> {
    let (path, mut other) = (file("names.safetensors"), network(4, 2)?);
    let right = network(4, 1)?.state_dict();
    let refused = |other: &mut Network, state: &StateDict| -> Result<String> {
        state.save(&path)?;
        let before = other.state_dict();
        let error = other.load_file(&path).unwrap_err().to_string();
        assert!(other.state_dict() == before, "{error}");
        Ok(error)
    };
    let mut state = right.clone();
    state.remove("1.weight");
    let error = refused(&mut other, &state)?;
    assert_eq!(error, "tensor 1.weight: expected shape [3, 4], given none");
    state.insert("1.weight", ndarray::Array1::zeros(5).into_dyn());
    let error = refused(&mut other, &state)?;
    assert_eq!(error, "tensor 1.weight: expected shape [3, 4], given shape [5]");
    let mut state = right.clone();
    state.insert("2.gamma", ndarray::Array1::zeros(5).into_dyn());
    let error = refused(&mut other, &state)?;
    assert_eq!(error, "tensor 2.gamma: expected a name that the network has, given shape [5]");

    let header = r#"{"0.bias":{"dtype":"I8","shape":[4],"data_offsets":[0,4]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&[0; 4]);
    fs::write(&path, bytes).unwrap();
    let error = Network::new(Linear::new(3, 4, &mut Random::new(1))?).load_file(&path).unwrap_err().to_string();
    assert_eq!(error, "tensor weight: expected shape [4, 3], given none");
    let error = StateDict::load(&path).unwrap_err().to_string();
    assert!(error.contains("names.safetensors: tensor 0.bias: expected F64, F32"), "{error}");
    Ok(())
}

/// Eight tensors, each as large as a type of one byte allows, end at 2^64 - 8: no sum of sizes may be taken unchecked.
fn sizes_near_the_end_of_the_numbers_are_no_panic() {
    let most = (1u64 << 61) - 1;
    let tensors = (0..8u64).map(|at| {
        let (start, end) = (at * most, (at + 1) * most);
        format!(r#""{at}":{{"dtype":"U8","shape":[{most}],"data_offsets":[{start},{end}]}}"#)
    });
    let header = format!("{{{}}}", tensors.collect::<Vec<_>>().join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    let error = StateDict::from_bytes(&bytes).unwrap_err().to_string();
    assert!(error.contains("0 bytes of elements where the header has 18446744073709551608"), "{error}");
}

fn loading_takes_no_memory_but_the_networks() -> Result<()> {
    let (path, size) = (file("large.safetensors"), 1000);
    let saved = network(size, 1)?.state_dict();
    saved.save(&path)?;
    let mut other = network(size, 2)?;
    let elements = 4 * size * size;
    let before = NOW.load(Relaxed);
    MOST.store(before, Relaxed);
    other.load_file(&path)?;
    let taken = MOST.load(Relaxed) - before;
    assert!(taken < elements / 10, "{taken} bytes beside the {elements} of the network");
    assert!(other.state_dict() == saved);
    Ok(())
}
