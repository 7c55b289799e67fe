//! Streams for many vCPUs out of streams for one: instances of a workload that live beside each other, threads that share an
//! address space, several processes in turn on one vCPU.

use memvirt_addr::{Acc, Gva};
use memvirt_ops::process::{Batch, FileId, Image, Op, ProcessId, Range, Segments, Source};

/// One instance of a stream among `of`: its processes and files have numbers that no other instance uses.
#[derive(Clone, Debug)]
pub struct Tenant<S> {
    inner: S,
    number: u32,
    of: u32,
}

impl<S> Tenant<S> {
    /// Instance `number` of `of`, counted from 0. Process and file n become n * `of` + `number`, modulo 2^32.
    #[must_use]
    pub const fn new(inner: S, number: u32, of: u32) -> Self {
        Self { inner, number, of }
    }

    /// The process that the instance begins with.
    #[must_use]
    pub const fn first(&self) -> ProcessId {
        self.process(ProcessId::FIRST)
    }

    const fn process(&self, id: ProcessId) -> ProcessId {
        ProcessId(id.0.wrapping_mul(self.of).wrapping_add(self.number))
    }

    const fn file(&self, id: FileId) -> FileId {
        FileId(id.0.wrapping_mul(self.of).wrapping_add(self.number))
    }

    fn image(&self, image: Image) -> Image {
        let own = |segments: Segments| Segments { file: self.file(segments.file), ..segments };
        Image { program: own(image.program), interpreter: image.interpreter.map(own), ..image }
    }

    fn own(&self, op: Op) -> Op {
        match op {
            Op::Fork { child } => Op::Fork { child: self.process(child) },
            Op::Vfork { child } => Op::Vfork { child: self.process(child) },
            Op::Wait { child } => Op::Wait { child: child.map(|child| self.process(child)) },
            Op::Switch { to } => Op::Switch { to: self.process(to) },
            Op::MapFile { range, prot, sharing, file, first_page } => {
                Op::MapFile { range, prot, sharing, file: self.file(file), first_page }
            }
            Op::Load { image } => Op::Load { image: self.image(image) },
            other => other,
        }
    }
}

impl<S: Source> Source for Tenant<S> {
    type Error = S::Error;

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, S::Error> {
        let more = self.inner.next_batch(batch)?;
        batch.then = batch.then.map(|op| self.own(op));
        Ok(more)
    }
}

/// A stream as one of several threads: everything it does lies `offset` bytes further up.
#[derive(Clone, Debug)]
pub struct Thread<S> {
    inner: S,
    offset: u64,
}

/// Why a stream cannot be a thread.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThreadError<E> {
    /// Its own reason to end.
    #[error(transparent)]
    Source(E),
    /// It does what only whole processes do.
    #[error(
        "threads of one process cannot `{0}`: it makes, replaces or ends a process; run instances instead (tenants), or a workload \
         that only maps, unmaps, protects and accesses memory"
    )]
    Process(&'static str),
}

impl<S> Thread<S> {
    /// The stream with all addresses moved up by `offset` bytes, whole pages.
    #[must_use]
    pub const fn new(inner: S, offset: u64) -> Self {
        Self { inner, offset }
    }

    fn up(&self, gva: Gva) -> Gva {
        gva.wrapping_add(self.offset)
    }

    fn moved<E>(&self, op: Op) -> Result<Op, ThreadError<E>> {
        let up = |range: Range| Range { start: self.up(range.start), ..range };
        Ok(match op {
            Op::Mmap { range, prot, backing } => Op::Mmap { range: up(range), prot, backing },
            Op::MapFile { range, prot, sharing, file, first_page } => {
                Op::MapFile { range: up(range), prot, sharing, file, first_page }
            }
            Op::Munmap { range } => Op::Munmap { range: up(range) },
            Op::Mprotect { range, prot } => Op::Mprotect { range: up(range), prot },
            Op::Mremap { from, to } => Op::Mremap { from: up(from), to: up(to) },
            Op::Discard { range } => Op::Discard { range: up(range) },
            Op::Copy { number, transfer, range } => Op::Copy { number, transfer, range: up(range) },
            Op::Brk { .. } => return Err(ThreadError::Process("brk")),
            Op::Fork { .. } => return Err(ThreadError::Process("fork")),
            Op::Vfork { .. } => return Err(ThreadError::Process("vfork")),
            Op::Exec | Op::Load { .. } => return Err(ThreadError::Process("exec")),
            Op::Exit => return Err(ThreadError::Process("exit")),
            Op::Switch { .. } => return Err(ThreadError::Process("switch")),
            Op::Wait { .. } => return Err(ThreadError::Process("wait")),
            other @ (Op::Handoff { .. } | Op::Syscall { .. } | Op::Interrupt | Op::Trap { .. }) => other,
        })
    }
}

impl<S: Source> Source for Thread<S> {
    type Error = ThreadError<S::Error>;

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, Self::Error> {
        let more = self.inner.next_batch(batch).map_err(ThreadError::Source)?;
        for acc in &mut batch.run {
            *acc = Acc::new(self.up(acc.gva()), acc.kind(), acc.privilege());
        }
        batch.then = batch.then.map(|op| self.moved(op)).transpose()?;
        Ok(more)
    }
}

/// Several instances in turn on one vCPU, each for a quantum.
#[derive(Clone, Debug)]
pub struct Rotation<S> {
    instances: Vec<Instance<S>>,
    on: usize,
    quantum: u64,
    left: u64,
}

#[derive(Clone, Debug)]
struct Instance<S> {
    source: S,
    /// The process of it that runs when it has the vCPU.
    current: ProcessId,
    /// Its process has ended and nothing runs until its next switch.
    ended: bool,
    /// A child of vfork runs on borrowed tables until it executes a program or ends.
    lent: bool,
    over: bool,
}

impl<S> Rotation<S> {
    /// Instances with the process that each begins with; the first one has the vCPU. The quantum is counted in instructions, so
    /// that what the guest does depends on no clock. It ends between two batches.
    #[must_use]
    pub fn new(instances: impl IntoIterator<Item = (S, ProcessId)>, quantum: u64) -> Self {
        let instance = |(source, current)| Instance { source, current, ended: false, lent: false, over: false };
        Self { instances: instances.into_iter().map(instance).collect(), on: 0, quantum, left: quantum }
    }

    /// Whose turn it is after the current one, if anybody else's.
    fn following(&self) -> Option<usize> {
        let n = self.instances.len();
        (1..n).map(|step| (self.on + step) % n).find(|i| !self.instances[*i].over)
    }
}

impl<S: Source> Source for Rotation<S> {
    type Error = S::Error;

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, S::Error> {
        loop {
            let Some(instance) = self.instances.get_mut(self.on) else { return Ok(false) };
            let yields = instance.over || (self.left == 0 && !instance.ended && !instance.lent);
            if yields {
                self.left = self.quantum;
                match self.following() {
                    Some(next) => {
                        self.on = next;
                        batch.clear();
                        batch.then = Some(Op::Switch { to: self.instances[next].current });
                        return Ok(true);
                    }
                    None if self.instances[self.on].over => {
                        batch.clear();
                        return Ok(false);
                    }
                    None => continue,
                }
            }
            if instance.source.next_batch(batch)? {
                instance.follow(batch.then.as_ref());
                self.left = self.left.saturating_sub(batch.instructions.max(1));
                return Ok(true);
            }
            instance.over = true;
        }
    }
}

impl<S> Instance<S> {
    fn follow(&mut self, op: Option<&Op>) {
        match op {
            Some(Op::Switch { to }) => (self.current, self.ended) = (*to, false),
            Some(Op::Vfork { .. }) => self.lent = true,
            Some(Op::Exec | Op::Load { .. }) => self.lent = false,
            Some(Op::Exit) => (self.ended, self.lent) = (true, false),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memvirt_addr::AccessKind;
    use memvirt_ops::process::{Backing, Prot};

    /// Batches as they are.
    #[derive(Clone)]
    struct Script(Vec<Batch>);

    impl Source for Script {
        type Error = core::convert::Infallible;

        fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, Self::Error> {
            batch.clear();
            if self.0.is_empty() {
                return Ok(false);
            }
            *batch = self.0.remove(0);
            Ok(true)
        }
    }

    fn does(op: Op) -> Batch {
        Batch { instructions: 10, then: Some(op), ..Batch::default() }
    }

    fn all<S: Source>(mut source: S) -> Vec<Batch>
    where
        S::Error: core::fmt::Debug,
    {
        let (mut batch, mut got) = (Batch::default(), Vec::new());
        while source.next_batch(&mut batch).unwrap() {
            got.push(batch.clone());
        }
        got
    }

    #[test]
    fn instances_share_no_number() {
        let script = Script(vec![does(Op::Fork { child: ProcessId(1) }), does(Op::Switch { to: ProcessId(1) })]);
        let numbers = |number| -> Vec<u32> {
            let ops = all(Tenant::new(script.clone(), number, 3)).into_iter().filter_map(|batch| batch.then);
            let number = |op| match op {
                Op::Fork { child } => child.0,
                Op::Switch { to } => to.0,
                _ => 99,
            };
            ops.map(number).collect()
        };
        assert_eq!((numbers(0), numbers(1), numbers(2)), (vec![3, 3], vec![4, 4], vec![5, 5]));
        assert_eq!(Tenant::new(script.clone(), 2, 3).first(), ProcessId(2));
    }

    #[test]
    fn a_thread_lies_further_up_and_makes_no_process() {
        let range = Range { start: Gva::new(0x1000), bytes: 4096 };
        let map = Op::Mmap { range, prot: Prot::RW, backing: Backing::AnonymousPrivate };
        let touch = Batch { run: vec![Acc::user(Gva::new(0x1008), AccessKind::Write)], ..does(map) };
        let moved = all(Thread::new(Script(vec![touch]), 1 << 30));
        assert_eq!(moved[0].run, [Acc::user(Gva::new(0x4000_1008), AccessKind::Write)]);
        assert!(matches!(moved[0].then, Some(Op::Mmap { range, .. }) if range.start == Gva::new(0x4000_1000)));
        let mut forks = Thread::new(Script(vec![does(Op::Fork { child: ProcessId(1) })]), 0);
        let refused = forks.next_batch(&mut Batch::default()).unwrap_err();
        assert!(refused.to_string().contains("cannot `fork`"), "{refused}");
    }

    #[test]
    fn who_has_ended_or_lent_its_tables_keeps_the_vcpu() {
        let call = || does(Op::Syscall { number: 1 });
        let one = vec![
            call(),
            does(Op::Vfork { child: ProcessId(2) }),
            does(Op::Switch { to: ProcessId(2) }),
            does(Op::Exit),
            does(Op::Switch { to: ProcessId(0) }),
            call(),
        ];
        let instances = [(Script(one), ProcessId(0)), (Script(vec![call(), call()]), ProcessId(1))];
        let got = all(Rotation::new(instances, 15));
        let names: Vec<String> = got
            .iter()
            .map(|batch| match batch.then {
                Some(Op::Switch { to }) => to.0.to_string(),
                Some(Op::Syscall { .. }) => "call".to_owned(),
                Some(Op::Vfork { .. }) => "vfork".to_owned(),
                _ => "exit".to_owned(),
            })
            .collect();
        // The quantum is over after two batches of ten instructions, but only a process that can wait gives way. That a stream is
        // over is seen when it is asked again.
        assert_eq!(names, ["call", "vfork", "2", "exit", "0", "1", "call", "call", "0", "call", "1"]);
        assert_eq!(got.iter().filter(|batch| batch.instructions == 0).count(), 3);
    }
}
