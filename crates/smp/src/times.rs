//! How long things took: a histogram fine enough for a queueing model to be fed with, and a run in parts of equal length.

/// Times in cycles, counted in classes of at most an eighth of their size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// How many, and their sum, by class.
    classes: Vec<(u64, u64)>,
}

/// Classes of each power of two.
const FINE: u32 = 3;

impl Times {
    /// One more.
    pub(crate) fn add(&mut self, cycles: u64) {
        let class = class(cycles);
        if self.classes.len() <= class {
            self.classes.resize(class + 1, (0, 0));
        }
        let (count, sum) = &mut self.classes[class];
        (*count, *sum) = (*count + 1, *sum + cycles);
    }

    /// How many, and their mean, for each class that holds some: the shortest first.
    #[expect(clippy::cast_precision_loss, reason = "a mean")]
    pub fn classes(&self) -> impl Iterator<Item = (u64, f64)> {
        let some = self.classes.iter().filter(|(count, _)| *count > 0);
        some.map(|(count, sum)| (*count, *sum as f64 / *count as f64))
    }

    /// How many in all.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.classes.iter().map(|(count, _)| count).sum()
    }

    /// All together.
    #[must_use]
    pub fn cycles(&self) -> u64 {
        self.classes.iter().map(|(_, sum)| sum).sum()
    }
}

fn class(cycles: u64) -> usize {
    let power = cycles.checked_ilog2().unwrap_or(0);
    let (octave, shift) = if power < FINE { (0, 0) } else { (power - FINE + 1, power - FINE) };
    let within = if octave == 0 { cycles } else { (cycles >> shift) - (1 << FINE) };
    (octave << FINE) as usize + usize::try_from(within).unwrap_or(0)
}

/// A part of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Accesses by processes.
    pub accesses: u64,
    /// Cycles, waits excluded.
    pub cycles: u64,
    /// Those of them under the lock.
    pub locked: u64,
    /// Takings of the lock.
    pub takings: u64,
}

impl Part {
    const fn join(self, other: Self) -> Self {
        Self {
            accesses: self.accesses + other.accesses,
            cycles: self.cycles + other.cycles,
            locked: self.locked + other.locked,
            takings: self.takings + other.takings,
        }
    }
}

/// A run in parts of about equal time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    done: Vec<Part>,
    current: Part,
    /// Cycles of a part.
    length: u64,
}

impl Default for Parts {
    fn default() -> Self {
        Self { done: Vec::new(), current: Part::default(), length: 1 }
    }
}

impl Parts {
    /// So many parts at most.
    const MOST: usize = 64;

    pub(crate) fn add(&mut self, part: Part) {
        self.current = self.current.join(part);
        if self.current.cycles < self.length {
            return;
        }
        self.done.push(std::mem::take(&mut self.current));
        if self.done.len() == Self::MOST {
            self.done = self.done.chunks(2).map(|two| two.iter().fold(Part::default(), |a, b| a.join(*b))).collect();
            self.length = 2 * self.done.iter().map(|part| part.cycles).max().unwrap_or(self.length);
        }
    }

    /// The run in `n` groups of parts of about equal time, one after the other; none where the parts are too few or too long for
    /// each group to hold one.
    #[must_use]
    pub fn groups(&self, n: usize) -> Vec<Part> {
        let whole: u64 = self.done.iter().map(|part| part.cycles).sum();
        let mut groups = vec![Part::default(); n];
        let mut before = 0;
        for part in &self.done {
            // A part belongs to the group that holds its middle.
            let middle = u128::from(before + part.cycles / 2);
            let at = usize::try_from(middle * n as u128 / u128::from(whole.max(1))).unwrap_or(usize::MAX);
            if let Some(group) = groups.get_mut(at) {
                *group = group.join(*part);
            }
            before += part.cycles;
        }
        if groups.iter().all(|group| group.cycles > 0) { groups } else { Vec::new() }
    }

    /// The first half of the run and the second, as near as the parts come to that.
    #[must_use]
    pub fn halves(&self) -> (Part, Part) {
        let all = || self.done.iter().copied().chain([self.current]);
        let whole: u64 = all().map(|part| part.cycles).sum();
        let (mut first, mut second) = (Part::default(), Part::default());
        for part in all() {
            // A part belongs to the half that holds its middle.
            if 2 * first.cycles + part.cycles <= whole && second.cycles == 0 {
                first = first.join(part);
            } else {
                second = second.join(part);
            }
        }
        (first, second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_fine_and_forget_nothing() {
        let mut times = Times::default();
        let all = (0..5000).chain([1 << 20, 1 << 40, u64::MAX >> 8]);
        all.clone().for_each(|cycles| times.add(cycles));
        assert_eq!((times.count(), times.cycles()), (5003, all.clone().sum()));
        for cycles in all {
            let found = times.classes().map(|(_, mean)| (mean - cycles as f64).abs()).fold(f64::INFINITY, f64::min);
            assert!(found <= cycles as f64 / 8.0, "{cycles}: {found}");
        }
        let means: Vec<_> = times.classes().map(|(_, mean)| mean).collect();
        assert!(means.is_sorted() && means.len() < 100, "{}", means.len());
    }

    #[test]
    fn halves_are_those_of_time_however_long_the_run() {
        for n in [1u64, 2, 7, 1000, 100_000] {
            let mut parts = Parts::default();
            for i in 0..n {
                parts.add(Part { accesses: 1, cycles: if i < n / 2 { 30 } else { 10 }, locked: 1, takings: 2 });
            }
            let (first, second) = parts.halves();
            assert_eq!(
                first.join(second),
                Part { accesses: n, cycles: 30 * (n / 2) + 10 * (n - n / 2), locked: n, takings: 2 * n }
            );
            let groups = parts.groups(8);
            assert_eq!(groups.len(), if n < 9 { 0 } else { 8 }, "{n}");
            if n > 100 {
                assert!(groups.iter().all(|group| group.cycles > first.cycles / 8), "{groups:?}");
                let share = first.cycles as f64 / (first.cycles + second.cycles) as f64;
                assert!((0.45..=0.55).contains(&share), "{n}: {share}");
            }
        }
    }
}
