//! Order between forks, waits and exits, and what becomes of recordings that have none.

use std::collections::BTreeMap;
use std::convert::Infallible;

use memvirt_ops::process::{Batch, Op, ProcessId, Source};

use super::{Family, Interleaver, Repairs, Turns};

/// A recording in memory.
struct Script(BTreeMap<u32, Vec<(u64, Option<Op>)>>, Vec<u32>);

struct Lines(std::vec::IntoIter<(u64, Option<Op>)>);

impl Source for Lines {
    type Error = Infallible;
    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, Infallible> {
        batch.clear();
        let Some((instructions, then)) = self.0.next() else { return Ok(false) };
        *batch = Batch { instructions, then, run: Vec::new() };
        Ok(true)
    }
}

impl Family for Script {
    type Stream = Lines;
    type Error = Infallible;
    fn roots(&self) -> Vec<ProcessId> {
        self.1.iter().map(|id| ProcessId(*id)).collect()
    }
    fn processes(&self) -> u64 {
        0
    }
    fn stream(&mut self, process: ProcessId) -> Result<Lines, Infallible> {
        Ok(Lines(self.0.remove(&process.0).unwrap_or_default().into_iter()))
    }
}

const fn op(op: Op) -> (u64, Option<Op>) {
    (1, Some(op))
}

/// A process and its batches: instructions, and what follows them.
type Played<'a> = (u32, &'a [(u64, Option<Op>)]);

/// What happens, as `process:operation` words; instructions as numbers.
fn played(streams: &[Played<'_>], roots: &[u32], turns: Turns) -> (String, Repairs) {
    let script = streams.iter().map(|(id, lines)| (*id, lines.to_vec())).collect();
    let mut all = Interleaver::new(Script(script, roots.to_vec()), turns);
    let (mut batch, mut words, mut current) = (Batch::default(), Vec::new(), 0);
    while all.next_batch(&mut batch).unwrap() {
        assert!(words.len() < 10_000, "it never ends");
        if batch.instructions > 1 {
            words.push(format!("{current}:{}", batch.instructions));
        }
        match batch.then {
            Some(Op::Switch { to }) => current = to.0,
            Some(Op::Fork { child }) => words.push(format!("{current}:fork{}", child.0)),
            Some(Op::Vfork { child }) => words.push(format!("{current}:vfork{}", child.0)),
            Some(Op::Wait { child: Some(child) }) => words.push(format!("{current}:wait{}", child.0)),
            Some(Op::Wait { child: None }) => words.push(format!("{current}:wait?")),
            Some(Op::Exec) => words.push(format!("{current}:exec")),
            Some(Op::Exit) => words.push(format!("{current}:exit")),
            Some(Op::Syscall { .. }) => words.push(format!("{current}:call")),
            _ => {}
        }
    }
    (words.join(" "), all.repairs())
}

const FOREVER: Turns = Turns { quantum: 1 << 60, seed: 0 };
const CHILD: ProcessId = ProcessId(1);

#[test]
fn a_wait_returns_after_the_exit() {
    let parent = [op(Op::Fork { child: CHILD }), (7, None), op(Op::Wait { child: Some(CHILD) }), op(Op::Exit)];
    let child = [(9, None), op(Op::Exit)];
    let (words, repairs) = played(&[(0, &parent), (1, &child)], &[0], FOREVER);
    assert_eq!((words.as_str(), repairs), ("0:fork1 0:7 1:9 1:exit 0:wait1 0:exit", Repairs::default()));
}

#[test]
fn a_wait_for_any_child_takes_one_that_ended_and_none_twice() {
    let second = ProcessId(2);
    let any = op(Op::Wait { child: None });
    let fork = |child| op(Op::Fork { child });
    let parent = [fork(CHILD), fork(second), any, any, any, op(Op::Exit)];
    let (words, repairs) =
        played(&[(0, &parent), (1, &[op(Op::Exit)]), (2, &[(9, None), op(Op::Exit)])], &[0], FOREVER);
    assert_eq!(words, "0:fork1 0:fork2 1:exit 2:9 2:exit 0:wait1 0:wait2 0:call 0:exit");
    assert_eq!(repairs, Repairs::default());
    // A child whose log ends in the middle is one that ended, too.
    let (words, repairs) = played(&[(0, &[fork(CHILD), any]), (1, &[(9, None)])], &[0], FOREVER);
    assert_eq!((words.as_str(), repairs.exits), ("0:fork1 1:9 1:exit 0:wait1", 1));
}

#[test]
fn the_parent_of_a_vfork_goes_on_after_the_exec() {
    let parent = [op(Op::Vfork { child: CHILD }), (7, None), op(Op::Wait { child: Some(CHILD) }), op(Op::Exit)];
    let child = [(9, None), op(Op::Exec), (11, None), op(Op::Exit)];
    let (words, repairs) = played(&[(0, &parent), (1, &child)], &[0], FOREVER);
    assert_eq!(words, "0:vfork1 1:9 1:exec 1:11 1:exit 0:7 0:wait1 0:exit");
    assert_eq!(repairs, Repairs::default());
}

#[test]
fn turns_end_after_about_a_quantum_and_the_seed_decides() {
    let steps = vec![(100, None); 50];
    let parent: Vec<_> = [op(Op::Fork { child: CHILD })].into_iter().chain(steps.clone()).collect();
    let play = |seed| played(&[(0, &parent), (1, &steps)], &[0], Turns { quantum: 1000, seed }).0;
    let words = play(1);
    let turns = words.split(' ').skip(1).map(|word| &word[..1]).collect::<Vec<_>>();
    let lengths: Vec<_> = turns.chunk_by(|a, b| a == b).map(<[_]>::len).collect();
    assert!(lengths.len() > 5 && lengths.iter().all(|length| *length <= 16), "{lengths:?}");
    assert_eq!(turns.iter().filter(|turn| **turn == "1").count(), 50);
    assert_eq!(play(1), words);
    assert_ne!(play(2), words);
}

#[test]
fn what_cannot_be_has_an_outcome_and_is_counted() {
    // The child's log ends in the middle, but the parent saw it dead.
    let parent = [op(Op::Fork { child: CHILD }), op(Op::Wait { child: Some(CHILD) }), op(Op::Exit)];
    let (words, repairs) = played(&[(0, &parent), (1, &[(9, None)])], &[0], FOREVER);
    assert_eq!((words.as_str(), repairs.exits), ("0:fork1 1:9 1:exit 0:wait1 0:exit", 1));
    // A wait for nobody, for itself, a second fork of the same number.
    let lone = [op(Op::Wait { child: Some(CHILD) }), op(Op::Wait { child: Some(ProcessId(0)) }), op(Op::Exit)];
    let (words, repairs) = played(&[(0, &lone)], &[0], FOREVER);
    assert_eq!((words.as_str(), repairs.waits), ("0:wait1 0:wait0 0:exit", 2));
    let twice = [op(Op::Fork { child: CHILD }), op(Op::Fork { child: CHILD }), op(Op::Fork { child: ProcessId(0) })];
    assert_eq!(played(&[(0, &twice)], &[0], FOREVER).1.forks, 2);
    // Two that wait for each other.
    let first = [op(Op::Fork { child: CHILD }), op(Op::Wait { child: Some(CHILD) }), op(Op::Exit)];
    let second = [op(Op::Wait { child: Some(ProcessId(0)) }), op(Op::Exit)];
    let (words, repairs) = played(&[(0, &first), (1, &second)], &[0], FOREVER);
    assert_eq!((words.as_str(), repairs.waits), ("0:fork1 0:wait1 0:exit 1:wait0 1:exit", 1));
    // Nobody forks process 1.
    let (words, repairs) = played(&[(0, &[op(Op::Exit)]), (1, &[op(Op::Exit)])], &[0, 1], FOREVER);
    assert_eq!((words.as_str(), repairs.orphans), ("0:fork1 1:exec 0:exit 1:exit", 1));
    // A vfork whose child ends in the middle.
    let vfork = [op(Op::Vfork { child: CHILD }), (7, None)];
    let (words, _) = played(&[(0, &vfork), (1, &[(9, None)])], &[0], FOREVER);
    assert_eq!(words, "0:vfork1 1:9 0:7");
}
