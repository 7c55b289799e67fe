//! What comes by itself: timer ticks, device interrupts, and the background work that hangs on ticks.
//!
//! Both are counted in instructions of processes, never in time. Source: Linux `mm/vmscan.c` and `mm/rmap.c`
//! (`folio_referenced_one`: reclaim tests and clears accessed bits), `arch/x86/mm/pgtable.c` (`ptep_clear_flush_young`: without
//! a flush, since an accessed bit that is set late costs at most a wrong guess).

use memvirt_pagetable::{Attrs, Format, Guest4};
use memvirt_platform::{Ledger, Platform};

use super::layout::Site;
use super::memory::Hands;
use super::mm::page_address;
use super::process::USER_END;
use super::{Guest, GuestConfig, Halted};

/// Instructions until the next tick and the next interrupt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    to_tick: u64,
    to_interrupt: u64,
}

impl Clock {
    pub(crate) const fn new(config: &GuestConfig) -> Self {
        Self { to_tick: config.tick_instructions, to_interrupt: config.interrupt_instructions }
    }
}

/// How many events of a period fall due within `passed` instructions, and what is left until the next one.
const fn due(passed: u64, left: u64, period: u64) -> (u64, u64) {
    if period == 0 || passed < left {
        return (0, left.saturating_sub(passed));
    }
    let over = passed - left;
    (1 + over / period, period - over % period)
}

impl Guest {
    /// Lets the process' instructions pass; ticks and interrupts fall due by their number.
    pub(crate) fn elapse(
        &mut self,
        instructions: u64,
        platform: &mut dyn Platform,
        ledger: &mut Ledger,
    ) -> Result<(), Halted> {
        self.me_mut().stats.instructions += instructions;
        let clock = self.me().clock;
        let (ticks, to_tick) = due(instructions, clock.to_tick, self.config.tick_instructions);
        let (interrupts, to_interrupt) = due(instructions, clock.to_interrupt, self.config.interrupt_instructions);
        self.me_mut().clock = Clock { to_tick, to_interrupt };
        for _ in 0..ticks {
            self.tick(platform, ledger)?;
        }
        for _ in 0..interrupts {
            self.interrupt(platform, ledger)?;
        }
        Ok(())
    }

    fn tick(&mut self, platform: &mut dyn Platform, ledger: &mut Ledger) -> Result<(), Halted> {
        self.me_mut().stats.ticks += 1;
        if self.current().is_none() {
            return Ok(());
        }
        self.kernel(Site::Tick, platform, ledger, |guest, hands| {
            guest.age(hands)?;
            guest.collapse_some(hands)
        })
    }

    pub(crate) fn interrupt(&mut self, platform: &mut dyn Platform, ledger: &mut Ledger) -> Result<(), Halted> {
        self.me_mut().stats.interrupts += 1;
        if self.current().is_none() {
            return Ok(());
        }
        self.kernel(Site::Interrupt, platform, ledger, |_, _| Ok(()))
    }

    /// Tests and clears accessed bits of the current process, from where the last tick left off.
    fn age(&mut self, hands: &mut Hands<'_>) -> Result<(), Halted> {
        let pages = usize::try_from(self.config.aging_pages).unwrap_or(usize::MAX);
        let Some(process) = self.current().and_then(|id| self.processes.get(&id)) else { return Ok(()) };
        if pages == 0 {
            return Ok(());
        }
        let (roots, from) = (process.roots, page_address(process.aged_to));
        let looked_at: Vec<_> =
            self.with_tables(hands, roots, |mapper, _| Ok(mapper.leaves(from..USER_END).take(pages).collect()))?;
        for mapping in looked_at.iter().filter(|mapping| mapping.attrs.contains(Attrs::ACCESSED)) {
            hands.clear_entry_bits(mapping.entry_at, Guest4::RAW_ACCESSED)?;
            hands.stats.entries_aged += 1;
        }
        let next = looked_at.last().filter(|_| looked_at.len() == pages);
        let next = next.map_or(0, |last| last.at.frame().number() + last.size.frames());
        if let Some(process) = self.current().and_then(|id| self.processes.get_mut(&id)) {
            process.aged_to = next;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::due;

    #[test]
    fn events_fall_due_by_their_period_however_instructions_come() {
        assert_eq!(due(9, 10, 10), (0, 1));
        assert_eq!(due(10, 10, 10), (1, 10));
        assert_eq!(due(35, 10, 10), (3, 5));
        assert_eq!(due(1 << 40, 0, 0), (0, 0));
        let (mut left, mut all) = (7, 0);
        for passed in [3, 4, 100, 1, 0, 6] {
            let (events, next) = due(passed, left, 7);
            (left, all) = (next, all + events);
        }
        assert_eq!(all, 114 / 7);
    }
}
