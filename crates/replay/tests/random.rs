//! Operation streams that nobody recorded, on every platform: the oracle refuses nothing that a correct one does, and where
//! the guest flushes what it changes, all of them let it see the same.

mod support;

use memvirt_oracle::FaultRule;
use memvirt_platform::{Native, Platform, Regime, Vendor};
use memvirt_replay::platforms::{kvm_nested, kvm_shadow};
use memvirt_replay::{Guest, Item, Recording, Report, Seen, Tolerance, Under, Watch, check, golden, replay};
use memvirt_shadow::kvm::Kernel;
use memvirt_shadow::{LazyFill, OnStore, Vbox, Vtlb, WriteProtect, Xen};
use support::{Habit, stream};

fn recording(text: &str) -> Recording<&[u8]> {
    Recording::new("stream", text.as_bytes())
}

/// How many streams; `MEMVIRT_SEEDS=1000` for a soak.
fn seeds(default: u64) -> u64 {
    std::env::var("MEMVIRT_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

fn checked(under: Under, text: &str) -> Report {
    match under {
        Under::KvmShadow(kernel) => check(recording(text), FaultRule::Kvm, |_| kvm_shadow(kernel)),
        Under::KvmNested(_) => check(recording(text), FaultRule::Architecture, |_| kvm_nested()),
        other => replay(recording(text), other, Tolerance::Strict, Watch::On),
    }
}

fn correct() -> impl Iterator<Item = Under> {
    let mut all = Under::all(Kernel::V6_1).to_vec();
    all.push(Under::KvmShadow(Kernel::V6_12));
    all.into_iter().filter(|under| *under != Under::InvlpgOnly)
}

#[test]
fn correct_platforms_pass_the_oracle_on_careless_guests() {
    for seed in 0..seeds(24) {
        let text = stream(seed, 1000, Habit::Careless);
        for under in correct() {
            let report = checked(under, &text);
            assert!(report.passed() && report.rows == 1000, "{under}, seed {seed}: {report}");
        }
    }
}

/// KVM drops nothing when it passes on a fault with P clear; seed 106 is a stream in which that shows.
#[test]
fn kvm_keeps_a_stale_page_after_a_fault_with_p_clear() {
    let text = stream(106, 1000, Habit::Careless);
    let report = check(recording(&text), FaultRule::Architecture, |_| kvm_shadow(Kernel::V6_1));
    assert!(report.broken > 0 && report.unjustified_faults == 0, "{report}");
}

#[test]
fn the_naive_platform_fails_on_nearly_every_careless_guest() {
    let broken = (0..24).filter(|seed| checked(Under::InvlpgOnly, &stream(*seed, 1000, Habit::Careless)).broken > 0);
    assert!(broken.count() >= 23);
}

fn seen<P: Platform>(platform: P, text: &str) -> Vec<Seen> {
    let mut items = recording(text).map(|item| item.expect("streams are well formed"));
    let Some(Item::Section(section)) = items.next() else { unreachable!("streams start with a section") };
    let mut guest = Guest::boot(platform, section.sequence).expect("the host is large enough");
    let row = |item| if let Item::Row(row) = item { guest.execute(&row.op).ok() } else { None };
    items.filter_map(row).collect()
}

fn shadow<R: Regime>(text: &str, make: impl FnOnce(&memvirt_platform::MemoryMap) -> R) -> Vec<Seen> {
    seen(golden::engine(|_, map| make(map)), text)
}

#[test]
fn guests_that_flush_see_the_same_on_every_platform() {
    for seed in 100..116 {
        let text = stream(seed, 800, Habit::Flushing);
        let native = seen(golden::bare(Native), &text);
        assert!(native.iter().any(|row| row.faults > 0) && native.iter().any(|row| row.value != 0));
        for (name, other) in [
            ("nested", seen(kvm_nested(), &text)),
            ("kvm 6.1", seen(kvm_shadow(Kernel::V6_1), &text)),
            ("kvm 6.12", seen(kvm_shadow(Kernel::V6_12), &text)),
            ("zap", shadow(&text, |map| WriteProtect::new(map, OnStore::Zap, Vendor::Vmx))),
            ("propagate", shadow(&text, |map| WriteProtect::new(map, OnStore::Propagate, Vendor::Vmx))),
            ("lazy-fill", shadow(&text, |map| LazyFill::new(map, Vendor::Vmx))),
            ("xen", shadow(&text, |map| Xen::new(map, 1, Vendor::Vmx))),
            ("vbox", shadow(&text, |map| Vbox::new(map, Vendor::Vmx))),
            ("vtlb", shadow(&text, |map| Vtlb::new(map, Vendor::Vmx))),
        ] {
            let differs = native.iter().zip(&other).position(|(a, b)| a != b);
            assert_eq!((native.len(), differs), (other.len(), None), "{name}, seed {seed}");
        }
    }
}
