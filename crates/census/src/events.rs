//! [`Events`]: the counts, each under the name that models know it by.

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a guest did, in events that do not depend on what it runs on.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Events {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Events {
            /// Each event with its name, which is that of the input of a model.
            pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

events! {
    /// Page faults that the guest sees.
    faults,
    /// INVLPG instructions.
    invlpgs,
    /// Loads of CR3 after the first.
    cr3_loads,
    /// Accesses that use an entry of any level for the first time since it was last stored to.
    fills,
    /// Of these, uses of a leaf entry that its last store left accessed (and dirty, for a store), its table and those above in
    /// use then: a hypervisor that propagates stores has the entry already.
    spared,
    /// First stores to pages that were read while clean.
    upgrades,
    /// Stores to entries of level 1 in tables in use.
    leaf_stores,
    /// Stores to entries of higher levels in tables in use.
    upper_stores,
    /// Stores to frames that were tables and hold data now.
    stray_stores,
    /// Stores to entries of tables in use, all levels.
    stores,
    /// Pages used between two flushes, summed over all such times.
    epoch_fills,
    /// First stores between two flushes to pages that were read in that time while clean.
    epoch_upgrades,
    /// Pages used under a root, again where a flush showed that they had changed.
    root_fills,
    /// First stores to pages that were read under a root while clean.
    root_upgrades,
    /// Accesses that use an entry for the first time since a flush showed that it had changed, leaf tables drifting in between
    /// and neighbours of a leaf filled with it.
    drift_fills,
    /// First stores under the same rules to pages that were read while clean, or to a table given up.
    drift_upgrades,
    /// Leaf tables stored to between two flushes, summed over all such times.
    table_epochs,
    /// Stores to upper tables in use; the third without a use between them ends that.
    noticed_stores,
    /// Guest frames touched, those of tables included.
    frames,
    /// Accesses under Xen's rules that use an entry for the first time, neighbours filled with it, or let a leaf table out of sync.
    xen_fills,
    /// Stores under Xen's rules to tables that stay in sync.
    xen_stores,
    /// Accesses under VirtualBox's rules that use an entry for the first time, neighbours filled with it, or make a table dirty.
    vbox_fills,
    /// Stores under VirtualBox's rules to monitored tables.
    vbox_stores,
}

impl Events {
    /// The count of an event by its name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<u64> {
        self.all().find(|(event, _)| *event == name).map(|(_, count)| count)
    }
}
