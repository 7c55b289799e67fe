//! Two texts of one program as one recording: areas from `strace`, addresses from `perf`.
//!
//! Neither says enough alone: `strace -f -e trace=memory,process` names every area and no access, `perf record -e page-faults`
//! gives the address of every page fault and no area. Both need no privilege. They are of two runs, whose addresses differ by
//! randomization, so that
//!
//! 1. address spaces are matched process by process ([`collect`]);
//! 2. calls are moved to the addresses of the faults' run by the rule that Linux places mappings with ([`place`]), below the
//!    top for which the faults fit best: the first instruction fetched is the interpreter's entry, as far from that top in one
//!    address space as in most others;
//! 3. what exec mapped is found from what was touched ([`image`]);
//! 4. each fault stands after the calls that it needs ([`merge`]);
//! 5. where a text of the kernel's tracepoints tells who ran when on which CPU, a replay follows it ([`turns`]).
//!
//! The result is what the program did; how many of the accesses fault, and how the tables change, is the guest's business.

mod collect;
mod image;
mod known;
mod merge;
mod place;
mod play;
mod turns;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::path::Path;

use memvirt_ops::process::{Batch, Op, Source};

use crate::Malformed;
use crate::bundle::{Bundle, Member, MemberReader, head_of, tar};
use crate::error::TraceError;
use crate::format::{Format, sniff};
use crate::input::Progress;
use crate::lackey::Tally;
use crate::text::TextReader;
use crate::text::perf::{Execs, Perf};
use crate::text::strace::Strace;

use collect::{Calls, Fault};
use merge::{Origin, Space, TOPS, Told, fit};
use play::Player;
use turns::Recorded;
pub use turns::{Party, Step, Turn};

/// A text of page faults in a bundle.
#[derive(Clone, Debug)]
pub struct FaultText {
    /// Its name in the bundle.
    pub name: String,
    /// Whether it says of each fault what access it was.
    pub has_kinds: bool,
    /// What it counts.
    pub tally: Tally,
    /// The loads of address spaces that it traces as flushes, in order: whether each kept the translations, under a PCID.
    pub loads: Vec<bool>,
}

/// A directory or archive with texts of strace and perf of one program.
#[derive(Debug)]
pub struct Pair {
    bundle: Bundle,
    calls: Calls,
    calls_tally: Tally,
    fault_texts: Vec<(Member, FaultText)>,
    /// The text that tells who ran where, and what it says.
    schedule: Option<(String, Recorded)>,
    damage: Option<String>,
}

/// Areas and addresses joined, in the order in which a kernel ran the processes where that is known.
#[derive(Debug)]
pub struct Replay {
    /// What happens, in order.
    pub steps: VecDeque<Step>,
    /// How many CPUs take part.
    pub cpus: usize,
    /// What was found out on the way.
    pub found: Found,
    /// The schedule that is followed; `None` where none was recorded, or one of other processes: the order is then that of the
    /// calls, on one CPU.
    pub schedule: Option<Followed>,
}

/// A schedule that a replay follows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Followed {
    /// The text that it is from.
    pub text: String,
    /// Its switches to or from processes of the recording.
    pub switches: u64,
    /// CPUs that it names.
    pub cpus: u64,
}

/// Areas and addresses joined: a stream.
#[derive(Debug)]
pub struct Joined {
    batches: VecDeque<Batch>,
    /// What was found out on the way.
    pub found: Found,
}

/// What joining found out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Found {
    /// Address spaces.
    pub spaces: u64,
    /// Page faults, which are the accesses of the stream.
    pub faults: u64,
    /// Those on addresses that neither a call nor exec maps.
    pub unplaced: u64,
    /// Calls that map something, or move it.
    pub mappings: u64,
    /// Those that the rule of placing does not explain.
    pub elsewhere: u64,
}

impl Pair {
    /// Opens a directory or an archive.
    ///
    /// # Errors
    ///
    /// [`TraceError::Open`] where it cannot be opened, [`TraceError::NotAPair`] where it lacks one of the texts.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, TraceError> {
        let path = path.as_ref();
        let bundle = open_bundle(path)?;
        let cut = bundle.cut.as_ref().map(|cut| format!("{} breaks off: {cut}", bundle.name));
        let why = cut.as_ref().map(|cut| format!(" ({cut})")).unwrap_or_default();
        let not_a_pair =
            |found: &str| TraceError::NotAPair { name: bundle.name.clone(), found: format!("it has {found}{why}") };
        let mut damage = cut.clone();
        let mut note = |error: Option<TraceError>| damage = damage.take().or(error.map(|error| error.to_string()));
        let of = |format| bundle.members.iter().filter(move |member| sniff(&member.head) == format);
        let strace =
            of(Format::Strace).max_by_key(|member| member.bytes).ok_or_else(|| not_a_pair("no strace text"))?;
        let (text, name) = (bundle.open(strace)?, bundle.member_name(strace));
        let mut reader = TextReader::new(text, name, Progress::default(), Strace::default());
        let (calls, broken) = collect::calls(&mut reader)?;
        let calls_tally = reader.tally();
        note(broken);
        let (mut fault_texts, mut schedule) = (Vec::new(), None);
        for member in of(Format::Perf) {
            let reader = match read_through(&bundle, member) {
                Ok((reader, broken)) => {
                    note(broken);
                    reader
                }
                // Where the bundle breaks off, what stands before may do.
                Err(error) if bundle.cut.is_some() => {
                    note(Some(error));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let has_kinds = member.head.windows(KINDS.len()).any(|window| window == KINDS);
            let switches = reader.grammar().schedule();
            let loads = switches.loads().to_vec();
            let text = FaultText { name: member.name.clone(), has_kinds, tally: reader.tally(), loads };
            if schedule.is_none() && !switches.switches().is_empty() {
                let again = perf(&bundle, member, Execs::Recorded, reader.grammar().threads())?;
                schedule = Some((text.name.clone(), Recorded::place(again, switches)));
            }
            fault_texts.push((member.clone(), text));
        }
        if fault_texts.is_empty() {
            return Err(not_a_pair("no perf text"));
        }
        Ok(Self { calls, calls_tally, fault_texts, schedule, damage, bundle })
    }

    /// What is wrong with the bundle, where it breaks off somewhere: what stands before is used.
    #[must_use]
    pub fn damage(&self) -> Option<&str> {
        self.damage.as_deref()
    }

    /// How many lines of all texts were not understood and skipped, and the first of them.
    #[must_use]
    pub fn malformed(&self) -> (u64, Option<&Malformed>) {
        let tallies = || std::iter::once(&self.calls_tally).chain(self.fault_texts().map(|text| &text.tally));
        (tallies().map(|tally| tally.malformed).sum(), tallies().find_map(|tally| tally.first_malformed.as_ref()))
    }

    /// The texts of page faults.
    pub fn fault_texts(&self) -> impl Iterator<Item = &FaultText> {
        self.fault_texts.iter().map(|(_, text)| text)
    }

    /// Joins the areas with the addresses of one of the texts.
    ///
    /// # Errors
    ///
    /// [`TraceError::NotAPair`] where there is no such text, or it is of another program.
    pub fn join(&self, name: &str) -> Result<Joined, TraceError> {
        let not_a_pair = |found: String| TraceError::NotAPair { name: self.bundle.name.clone(), found };
        let text = self.fault_texts.iter().find(|(_, text)| text.name == name);
        let (member, text) = text.ok_or_else(|| not_a_pair(format!("no perf text named {name}")))?;
        let spaces = self.calls.copied.len();
        let threads = read_through(&self.bundle, member)?.0.grammar().threads();
        let read = |execs| Ok::<_, TraceError>(collect::faults(perf(&self.bundle, member, execs, threads.clone())?));
        let faults = read(Execs::Recorded)?;
        // Without privilege perf tells of no exec; the new program has a name of its own.
        let renamed = if faults.len() < spaces { read(Execs::Renamed)? } else { Vec::new() };
        let found = faults.len();
        let Some(faults) = [faults, renamed].into_iter().find(|faults| faults.len() == spaces) else {
            let why = self.damage.as_ref().map(|damage| format!(" ({damage})")).unwrap_or_default();
            return Err(not_a_pair(format!("{spaces} address spaces in its strace text and {found} in {name}{why}")));
        };
        let mut of_space = vec![Vec::new(); spaces];
        for (space, faults) in self.calls.ranked.iter().zip(faults) {
            of_space[*space] = faults;
        }
        Ok(joined(&self.calls, &of_space, text.has_kinds))
    }
}

/// A directory or an archive; one text alone is told what it lacks.
fn open_bundle(path: &Path) -> Result<Bundle, TraceError> {
    let failed = |source| TraceError::Open { path: path.to_owned(), source };
    let metadata = path.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Bundle::directory(path);
    }
    let single = |found: String| TraceError::NotAPair { name: path.display().to_string(), found };
    if !metadata.is_file() {
        return Err(single("it is neither a directory nor an archive".into()));
    }
    let (head, compression) = head_of(File::open(path).map_err(failed)?);
    if tar::is_header(&head) {
        return Bundle::archive(path, compression);
    }
    let what = match sniff(&head) {
        Format::Strace => "the text of strace alone",
        Format::Perf => "the text of perf alone",
        _ if head.is_empty() && metadata.len() > 0 => "damaged from its beginning",
        _ => "no archive",
    };
    Err(single(format!("it is {what}; give a directory or a tar archive that holds both texts")))
}

type PerfReader = TextReader<MemberReader, Perf>;

/// A text of perf read to its end, for what it counts; and why it breaks off, where it does after the first events. Twice where
/// the first reading finds out that some tasks are threads.
fn read_through(bundle: &Bundle, member: &Member) -> Result<(PerfReader, Option<TraceError>), TraceError> {
    let first = read_once(bundle, member, BTreeSet::new())?;
    let threads = first.0.grammar().threads();
    if threads.is_empty() { Ok(first) } else { read_once(bundle, member, threads) }
}

fn read_once(
    bundle: &Bundle,
    member: &Member,
    threads: BTreeSet<u32>,
) -> Result<(PerfReader, Option<TraceError>), TraceError> {
    let mut reader = perf(bundle, member, Execs::Recorded, threads)?;
    let mut batch = Batch::default();
    loop {
        match reader.next_batch(&mut batch) {
            Ok(true) => {}
            Ok(false) => return Ok((reader, None)),
            Err(error) if reader.tally().access_lines() == 0 => return Err(error),
            Err(error) => return Ok((reader, Some(error))),
        }
    }
}

impl Pair {
    /// As [`Pair::join`], following the recorded schedule where the bundle has one: who ran when on which CPU is then an
    /// input, and switches to programs outside of the recording are part of it.
    ///
    /// # Errors
    ///
    /// As [`Pair::join`].
    pub fn replay(&self, name: &str) -> Result<Replay, TraceError> {
        let Joined { batches, found } = self.join(name)?;
        if let Some((text, recorded)) = &self.schedule
            && let Some(steps) = recorded.replay(batches.clone())
        {
            let cpus = recorded.cpus;
            let schedule = Some(Followed { text: text.clone(), switches: recorded.turns(), cpus: cpus as u64 });
            return Ok(Replay { steps, cpus, found, schedule });
        }
        let steps = batches.into_iter().map(|batch| Step::Run { cpu: 0, batch }).collect();
        Ok(Replay { steps, cpus: 1, found, schedule: None })
    }
}

/// What stands in perf's text of the kernel's own tracepoint.
const KINDS: &[u8] = b"exceptions:page_fault_user";

fn perf(bundle: &Bundle, member: &Member, execs: Execs, threads: BTreeSet<u32>) -> Result<PerfReader, TraceError> {
    let grammar = Perf::with(execs, threads);
    Ok(TextReader::new(bundle.open(member)?, bundle.member_name(member), Progress::default(), grammar))
}

fn joined(calls: &Calls, faults: &[Vec<Fault>], has_kinds: bool) -> Joined {
    let spaces = calls.copied.len();
    let mut own = vec![Vec::new(); spaces];
    for event in &calls.events {
        if matters(&event.op) {
            own[event.space].push(event.op);
        }
    }
    let made = || (0..spaces).filter(|space| calls.copied[*space].is_none());
    let each: Vec<_> = made().map(|space| (&own[space][..], &faults[space][..])).collect();
    let tops: BTreeMap<usize, Option<u64>> = made().zip(tops_of(&each)).collect();
    let forks: Vec<Vec<usize>> = (0..spaces).map(|space| forks_of(calls, faults, space)).collect();
    let mut all: Vec<Space> = Vec::with_capacity(spaces);
    for (space, number) in (0..spaces).zip(0u32..) {
        let is_threaded =
            calls.events.iter().any(|event| event.space == space && matches!(event.op, Op::Handoff { .. }));
        let told = Told { calls: &own[space], faults: &faults[space], forks: &forks[space], has_kinds, is_threaded };
        // A copy comes after what it is a copy of.
        all.push(match calls.origin(space) {
            Some((origin, inherited)) if origin < space => {
                Space::copy(told, Origin { space: &all[origin], faults: &faults[origin], calls: &inherited })
            }
            _ => Space::new(told, tops.get(&space).copied().flatten(), number),
        });
    }
    let spaces = all;
    let found = Found {
        spaces: spaces.len() as u64,
        faults: faults.iter().map(|faults| faults.len() as u64).sum(),
        unplaced: spaces.iter().map(Space::unplaced).sum(),
        mappings: own.iter().flatten().filter(|op| maps(op)).count() as u64,
        elsewhere: spaces.iter().map(|space| space.layout.elsewhere).sum(),
    };
    Joined { batches: Player::new(spaces).play(&calls.events), found }
}

/// The numbers of the first faults of the copies of a space, ascending.
fn forks_of(calls: &Calls, faults: &[Vec<Fault>], space: usize) -> Vec<usize> {
    let copies = calls.copied.iter().zip(faults).filter(|(of, _)| **of == Some(space));
    let mut first: Vec<_> = copies.filter_map(|(_, faults)| Some(faults.first()?.order)).collect();
    first.sort_unstable();
    first
}

/// Whether an operation concerns memory areas.
const fn matters(op: &Op) -> bool {
    matches!(
        op,
        Op::Mmap { .. }
            | Op::MapFile { .. }
            | Op::Munmap { .. }
            | Op::Mprotect { .. }
            | Op::Mremap { .. }
            | Op::Brk { .. }
            | Op::Discard { .. }
    )
}

/// Whether an operation puts something where nothing was.
fn maps(op: &Op) -> bool {
    match op {
        Op::Mmap { .. } | Op::MapFile { .. } => true,
        Op::Mremap { from, to } => from.start != to.start,
        _ => false,
    }
}

fn first_page(faults: &[Fault]) -> Option<u64> {
    faults.first().map(|fault| fault.address / place::PAGE * place::PAGE)
}

/// So much better another place must fit to be taken for a space's own: a few faults fall on something at many places.
const BY_CHANCE: i64 = 8;

/// Below where mappings fill each of the address spaces that exec made, whose calls and faults are given: so many pages under the
/// first one fetched. In most spaces of a program that is the same number; where the kernel's own pages for user mode (vdso) lie
/// elsewhere, beside the stack, which is left to chance (Linux 5 and 6, `vdso_addr`), it is another, and the space's own calls
/// and faults say so.
fn tops_of(each: &[(&[Op], &[Fault])]) -> Vec<Option<u64>> {
    let top = |faults: &[Fault], distance: u64| Some(first_page(faults)?.saturating_sub(distance * place::PAGE));
    let fits = |(calls, faults): &(&[Op], &[Fault])| -> Vec<i64> {
        (0..TOPS).map(|distance| top(faults, distance).map_or(0, |top| fit(calls, faults, top))).collect()
    };
    let fits: Vec<Vec<i64>> = each.iter().map(fits).collect();
    let total = |distance: usize| fits.iter().map(|fits| fits[distance]).sum::<i64>();
    let distances = || 0..fits.first().map_or(0, Vec::len);
    let Some(common) = distances().max_by_key(|distance| (total(*distance), Reverse(*distance))) else {
        return Vec::new();
    };
    let own = |fits: &Vec<i64>| {
        let best = distances().max_by_key(|distance| (fits[*distance], Reverse(distance.abs_diff(common))));
        best.filter(|best| fits[*best] - fits[common] >= BY_CHANCE).unwrap_or(common)
    };
    each.iter().zip(&fits).map(|((_, faults), fits)| top(faults, own(fits) as u64)).collect()
}

impl Source for Joined {
    type Error = TraceError;

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, TraceError> {
        let next = self.batches.pop_front();
        let more = next.is_some();
        *batch = next.unwrap_or_default();
        Ok(more)
    }
}

#[cfg(test)]
mod tests;
