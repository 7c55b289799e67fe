//! [`RegisterWalk`]: registers name the leaf tables, so that a walk reads three entries.
//!
//! 1. the host's leaf entry for the page that holds the guest's leaf entry,
//! 2. the guest's leaf entry,
//! 3. the host's leaf entry for the data's page.
//!
//! **What it demands of the hypervisor**: the leaf tables of its tree lie side by side ([`LeafArray`]). **Of the guest**: the
//! leaf tables below each table of level 2 lie side by side too, in a region of guest memory set aside for nothing else (the
//! *arena*): the one for entry i of the table at index i of a block of 512 frames. Tables that are not in use there are all
//! zero, and the entries that lead to them permit everything, accessed bit set, as a kernel's do. The trees stay complete, and
//! what no register names is walked in them: 24 references.
//!
//! Registers are few and name 1 GiB of addresses each, or the table itself where pages are larger. Hardware loads them from
//! full walks, and drops them as it drops entries of paging-structure caches, save that INVLPG spares the arrays of other
//! regions: within an array nothing but leaf entries changes. (In the proposal the kernel loads them with each process.) What
//! a register's walk cannot translate is walked in full before it counts as a fault.
//!
//! Source: Zhang et al., *Direct Memory Translation for Virtualized Clouds*, ASPLOS 2024, without its paravirtual variant, which
//! saves the first reference; the three references are those that the SagePTE artifact counts for it.

use memvirt_addr::{Acc, Gfn, Gva, HostPhys, Level};
use memvirt_ops::arch::{Control, CrWrite, GfnRange, HostEvent, Invpcid};
use memvirt_pagetable::{Attrs, Guest4, PhysMem};
use memvirt_platform::{Caches, Cx, Host, MemoryMap, Outcome, Probe, Refusal, Regime, Regs, Request, TableBytes};

use crate::dirty::DirtyLog;
use crate::hypervisor::{self, Hypervisor};
use crate::leaf_array::LeafArray;
use crate::meter::{DataReference, Job, Meter, on_cpu, shown};
use crate::stage::HostTables;
use crate::walk::{End, Start, TableAt, walk, walk_cached_to};

/// What one register names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Register {
    pcid: u16,
    /// The level of the tables: 1 for an array of leaf tables, above for one table whose leaves are larger pages.
    level: Level,
    /// The address bits that the entry for it at the level above selects by, and for an array one level more.
    region: u64,
    /// The table, or the array's first.
    table: Gfn,
    /// What the entries above permit.
    perms: Attrs,
}

impl Register {
    /// The region of an address at `level`: 1 GiB for arrays and tables of level 2, 512 GiB for tables of level 3.
    const fn region(gva: Gva, level: Level) -> u64 {
        match level {
            Level::L1 | Level::L2 => gva.as_u64() >> 30,
            _ => gva.as_u64() >> 39,
        }
    }

    fn covers(&self, pcid: u16, gva: Gva) -> bool {
        self.pcid == pcid && self.region == Self::region(gva, self.level)
    }

    /// The leaf table for an address that it covers.
    fn start(&self, gva: Gva) -> Start {
        let index = if self.level == Level::L1 { gva.index(Level::L2) as u64 } else { 0 };
        Start { table: TableAt::Guest(self.table.offset(index)), level: self.level, perms: self.perms }
    }
}

/// The registers of one vCPU, the one used last at the end.
#[derive(Clone, Debug, Default)]
struct File(Vec<Register>);

impl File {
    fn find(&mut self, pcid: u16, gva: Gva) -> Option<Start> {
        let found = self.0.iter().rposition(|register| register.covers(pcid, gva))?;
        let register = self.0.remove(found);
        self.0.push(register);
        Some(register.start(gva))
    }

    fn load(&mut self, register: Register, most: usize) {
        let same = |other: &Register| (other.pcid, other.region) == (register.pcid, register.region);
        self.0.retain(|other| !(same(other) && other.level == register.level));
        if self.0.len() >= most {
            self.0.remove(0);
        }
        self.0.push(register);
    }

    fn forget(&mut self, pcid: u16, gva: Gva) {
        self.0.retain(|register| !register.covers(pcid, gva));
    }

    /// What a flush of one page drops: arrays of its region, tables of any.
    fn flush_page(&mut self, pcid: u16, gva: Gva) {
        self.0.retain(|other| other.pcid != pcid || (other.level == Level::L1 && !other.covers(pcid, gva)));
    }

    fn flush_pcid(&mut self, pcid: u16) {
        self.0.retain(|other| other.pcid != pcid);
    }

    /// What a privileged operation drops; `pcid` is the one in use after it, `tagged` whether PCIDs are in use.
    fn control(&mut self, control: &Control, pcid: u16, tagged: bool) {
        match *control {
            Control::Invlpg(gva) => self.flush_page(pcid, gva),
            Control::Invpcid(Invpcid::Address(pcid, gva)) => self.flush_page(pcid.number(), gva),
            Control::Cr3(cr3) if !(cr3.keep && tagged) => self.flush_pcid(pcid),
            Control::Invpcid(Invpcid::Single(pcid)) => self.flush_pcid(pcid.number()),
            Control::Cr(CrWrite::TogglePge | CrWrite::PcidEnable(false))
            | Control::Invpcid(Invpcid::All | Invpcid::AllGlobal) => self.0.clear(),
            _ => {}
        }
    }
}

/// Walks by registers for one virtual machine.
#[derive(Debug)]
pub struct RegisterWalk {
    hypervisor: Hypervisor<LeafArray>,
    arena: GfnRange,
    data: DataReference,
    registers: usize,
    files: Vec<File>,
}

impl RegisterWalk {
    /// How many registers a vCPU has unless told otherwise (an estimate: the proposal has "a few").
    pub const REGISTERS: usize = 16;

    /// A machine with the memory of `map`, whose guest keeps its leaf tables in `arena`, a whole number of blocks of 512 frames.
    /// `None` where the host has no contiguous memory for its own.
    pub fn new(host: &mut Host, map: &MemoryMap, arena: GfnRange) -> Option<Self> {
        let hypervisor = Hypervisor::new(LeafArray::new(host, map.frames())?);
        let data = DataReference::Counted;
        Some(Self { hypervisor, arena, data, registers: Self::REGISTERS, files: Vec::new() })
    }

    /// The same with the data's own translation in the count or not.
    #[must_use]
    pub const fn with_data_reference(mut self, data: DataReference) -> Self {
        self.data = data;
        self
    }

    /// The same with this many registers, at least one.
    #[must_use]
    pub fn with_registers(mut self, registers: usize) -> Self {
        self.registers = registers.max(1);
        self
    }

    /// The log of dirtied pages.
    #[must_use]
    pub const fn log(&self) -> &DirtyLog {
        &self.hypervisor.log
    }

    fn file(&mut self, v: usize) -> &mut File {
        if self.files.len() <= v {
            self.files.resize(v + 1, File::default());
        }
        &mut self.files[v]
    }

    const fn job(&self, named: Option<Start>) -> Named<'_> {
        Named { stage: &self.hypervisor.stage, data: self.data, named }
    }

    /// One hardware walk without walk caches, shown to `probe` and counted nowhere.
    pub fn show<P: Probe>(&mut self, cx: &mut Cx<'_>, request: &Request<'_>, probe: &mut P) -> End {
        let pcid = cx.regs().pcid().number();
        let named = self.file(cx.me.index()).find(pcid, request.acc.gva());
        shown(cx, request.acc, self.job(named), probe).end
    }

    /// Loads a register from what a full walk found last, where the tables lie as they must.
    fn learn(&mut self, v: usize, pcid: u16, gva: Gva, last: &Start) {
        let TableAt::Guest(gfn) = last.table else { return };
        let index = gva.index(Level::L2) as u64;
        let table = match last.level {
            Level::L1 => {
                let place = gfn.number().wrapping_sub(self.arena.start.number());
                if !self.arena.contains(gfn) || place % 512 != index {
                    return;
                }
                Gfn::new(gfn.number() - index)
            }
            Level::L2 | Level::L3 => gfn,
            _ => return,
        };
        let (level, region) = (last.level, Register::region(gva, last.level));
        let (registers, perms) = (self.registers, last.perms & Attrs::PERMISSIONS);
        self.file(v).load(Register { pcid, level, region, table, perms }, registers);
    }
}

/// One walk: by what a register names, if it does, and in full where that does not translate.
struct Named<'a> {
    stage: &'a LeafArray,
    data: DataReference,
    named: Option<Start>,
}

/// How such a walk ended.
struct Ended {
    end: End,
    /// The last table of a full walk, where one was made.
    full: Option<Start>,
}

impl Job for Named<'_> {
    type End = Ended;

    fn data(&self) -> DataReference {
        self.data
    }

    fn run<P: Probe, C: Caches>(
        self,
        mem: &mut PhysMem<HostPhys>,
        regs: &Regs,
        acc: Acc,
        meter: &mut Meter<'_, P, C>,
    ) -> Ended {
        if let Some(named) = self.named {
            let end = walk::<Guest4, _, _, _>(mem, self.stage.leaves(), regs, acc, named, meter);
            if !matches!(end, End::GuestFault(_)) {
                return Ended { end, full: None };
            }
        }
        let (end, last) = walk_cached_to::<Guest4, _, _, _>(mem, self.stage, regs, acc, meter);
        Ended { end, full: Some(last) }
    }
}

impl Regime for RegisterWalk {
    fn miss(&mut self, cx: &mut Cx<'_>, request: &Request<'_>) -> Outcome {
        let (v, pcid, gva) = (cx.me.index(), cx.regs().pcid().number(), request.acc.gva());
        let named = self.file(v).find(pcid, gva);
        let Ended { end, full } = on_cpu(cx, request.acc, self.job(named));
        if let Some(last) = full {
            self.file(v).forget(pcid, gva);
            if !end.is_fault() {
                self.learn(v, pcid, gva, &last);
            }
        }
        self.hypervisor.ended(cx, request, end)
    }

    fn control(&mut self, cx: &mut Cx<'_>, control: &Control) -> Result<(), Refusal> {
        hypervisor::control(cx, control);
        let (pcid, tagged) = (cx.regs().pcid().number(), cx.regs().pcid_enable);
        self.file(cx.me.index()).control(control, pcid, tagged);
        Ok(())
    }

    fn host(&mut self, cx: &mut Cx<'_>, event: &HostEvent) {
        self.hypervisor.host(cx, event);
    }

    fn table_bytes(&self) -> TableBytes {
        TableBytes { nested: self.hypervisor.stage.bytes(), ..TableBytes::default() }
    }
}
