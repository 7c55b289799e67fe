//! [`RegimeKind`]: regimes by name.

use std::fmt;
use std::str::FromStr;

use memvirt_guest::{GuestConfig, TableFrames};
use serde::{Serialize, Serializer};

macro_rules! regimes {
    ($($(#[$doc:meta])* $kind:ident = $name:literal, $about:literal;)*) => {
        /// How guest addresses are translated.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum RegimeKind {
            $($(#[$doc])* $kind,)*
        }

        impl RegimeKind {
            /// Every regime.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// The name on the command line and in results.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }

            /// One line on what the regime is.
            #[must_use]
            pub const fn about(self) -> &'static str {
                match self {
                    $(Self::$kind => $about,)*
                }
            }
        }
    };
}

regimes! {
    /// A machine without virtualization.
    Native = "native", "no virtualization: hardware walks the guest's own tables";
    /// Shadow tables, every store to a guest table trapped; the shadow entry is dropped.
    ShadowWriteProtect = "shadow:write-protect", "every store to a guest table exits; its shadow entry is dropped";
    /// Shadow tables, every store to a guest table trapped; the shadow entry is replaced by the new one.
    ShadowPropagate = "shadow:write-protect/propagate",
        "every store to a guest table exits; its shadow entry is renewed at once";
    /// Shadow tables without write protection, kept per CR3 and resynced at INVLPG and CR3 loads.
    ShadowLazyFill = "shadow:lazy-fill",
        "no write protection: filled on first touch, kept per CR3, resynced at INVLPG and CR3 loads";
    /// Intel's virtual TLB: emptied at each CR3 load.
    ShadowVtlb = "shadow:vtlb", "Intel's virtual TLB: filled on first touch, emptied at each CR3 load";
    /// KVM's shadow MMU as of Linux 6.1.
    ShadowKvm61 = "shadow:kvm", "KVM's shadow MMU of Linux 6.1: leaf tables go out of sync, upper levels trap";
    /// KVM's shadow MMU as of Linux 6.12.
    ShadowKvm612 = "shadow:kvm-6.12", "KVM's shadow MMU of Linux 6.12";
    /// Xen's shadow paging.
    ShadowXen = "shadow:xen", "Xen: at most three leaf tables per vCPU out of sync, with snapshots";
    /// VirtualBox's shadow paging.
    ShadowVbox = "shadow:vbox", "VirtualBox: every table monitored; leaf tables stored to often turn dirty, 16 at most";
    /// The naive policy, which is wrong.
    ShadowInvlpgOnly = "shadow:invlpg-only",
        "the naive one: entries go at INVLPG only; hands out wrong translations to guests that flush otherwise";
    /// Nested paging with Intel's EPT.
    NestedEpt = "nested", "Intel EPT: hardware walks both dimensions; only EPT violations exit";
    /// Nested paging with AMD's NPT.
    NestedNpt = "nested:npt", "AMD NPT: the same with NPT's permission rules; CR4 accesses exit too (SVM)";
    /// The guest is an L2 whose tables L1 shadows, under L0's EPT.
    NestedVirtShadow = "nested-virt:shadow-on-ept",
        "nested virtualization: L1 shadows the guest's tables, hardware walks the shadow under L0's EPT; exits pass through L0";
    /// The guest is an L2 whose EPT of L1 is merged with L0's.
    NestedVirtEpt = "nested-virt:ept-on-ept",
        "nested virtualization: L1 keeps an EPT, which L0 merges with its own; L1's stores to it exit";
    /// The guest is an L2 that L1 shadows and reaches without L0.
    NestedVirtPvm = "nested-virt:pvm",
        "nested virtualization as PVM does it: L1 shadows the guest's tables, a switcher changes between both without L0";
    /// A flat nested table.
    Flat = "flat", "flat nested table (ISCA 2012): guest tables over one linear table of the host; 9 references cold";
    /// Agile paging that follows the guest's stores.
    Agile = "agile", "agile paging (ISCA 2016): shadow tables, nested from where the guest changes its tables";
    /// Agile paging, all shadow.
    Agile0 = "agile:0", "agile paging with no level nested: 4 references cold";
    /// Agile paging with leaf tables nested.
    Agile1 = "agile:1", "agile paging with leaf tables nested: 8 references cold";
    /// Agile paging with two levels nested.
    Agile2 = "agile:2", "agile paging with the lowest two levels nested: 12 references cold";
    /// Agile paging with three levels nested.
    Agile3 = "agile:3", "agile paging with the lowest three levels nested: 16 references cold";
    /// Agile paging with all levels nested.
    Agile4 = "agile:4", "agile paging with all levels nested, the root named by its host frame: 20 references cold";
    /// A direct segment of the host.
    DirectSegment = "direct-segment",
        "direct segment (MICRO 2014), VMM direct: guest tables over host memory translated by registers; 4 references cold";
    /// A direct segment of the guest kernel.
    DirectSegmentGuest = "direct-segment:guest",
        "direct segment, guest direct: the guest kernel's direct map by registers, the host by EPT; all else as nested";
    /// Direct segments of both.
    DirectSegmentDual = "direct-segment:dual",
        "direct segment, dual direct: the guest kernel's direct map by registers in both dimensions, 0 references; all else VMM direct";
    /// Registers that name leaf tables.
    RegisterWalk = "register-walk",
        "registers name leaf tables (DMT, ASPLOS 2024): 3 references; the guest keeps its leaf tables in arrays for it";
}

impl RegimeKind {
    /// Whether the regime never hands out a translation that the guest has flushed.
    #[must_use]
    pub const fn is_correct(self) -> bool {
        !matches!(self, Self::ShadowInvlpgOnly)
    }

    /// The guest's switches with those that the regime cannot do without.
    #[must_use]
    pub fn asks_of(self, guest: GuestConfig) -> GuestConfig {
        match self {
            Self::RegisterWalk => GuestConfig { table_frames: TableFrames::LeafArrays, ..guest },
            _ => guest,
        }
    }
}

impl fmt::Display for RegimeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for RegimeKind {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let alias = match s {
            "nested:ept" => "nested",
            "direct-segment:vmm" => "direct-segment",
            "shadow:write-protect/zap" => "shadow:write-protect",
            "shadow:kvm-6.1" | "shadow:unsync" => "shadow:kvm",
            other => other,
        };
        Self::ALL.iter().copied().find(|kind| kind.name() == alias).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|kind| kind.name()).collect();
            format!("unknown regime `{s}`; known: {}", known.join(", "))
        })
    }
}

impl Serialize for RegimeKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
