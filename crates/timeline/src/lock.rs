//! The MMU lock of one virtual machine: a fair reader-writer lock in simulated time.
//!
//! Source: Linux `kernel/locking/qrwlock.c`: who cannot have the lock at once enters one queue for readers and writers; the
//! head of the queue waits for the holders. KVM's `mmu_lock` is such a lock since Linux 5.12.

use std::collections::VecDeque;

use crate::account::LockAccount;
use crate::step::Lock;

/// The lock.
#[derive(Debug, Default)]
pub(crate) struct MmuLock {
    /// Who holds it: nobody, one exclusively, or so many shared.
    holders: usize,
    exclusive: bool,
    since: u64,
    queue: VecDeque<(usize, Lock, u64)>,
    pub(crate) account: LockAccount,
}

impl MmuLock {
    /// Asks for the lock at `now`; whether it is had at once. Who has to wait is granted it by [`MmuLock::release`].
    pub(crate) fn acquire(&mut self, vcpu: usize, mode: Lock, now: u64) -> bool {
        self.account.acquisitions += 1;
        if self.queue.is_empty() && self.admits(mode) {
            self.enter(mode, now);
            return true;
        }
        self.account.contended += 1;
        self.queue.push_back((vcpu, mode, now));
        self.account.longest_queue = self.account.longest_queue.max(self.queue.len());
        false
    }

    /// Gives the lock back at `now`; appends who has it now.
    pub(crate) fn release(&mut self, now: u64, granted: &mut Vec<usize>) {
        self.holders -= 1;
        if self.holders == 0 {
            let held = now - self.since;
            if self.exclusive { self.account.exclusive += held } else { self.account.shared += held }
        }
        while let Some((vcpu, mode, since)) = self.queue.front().copied().filter(|(_, mode, _)| self.admits(*mode)) {
            self.queue.pop_front();
            self.account.waited += now - since;
            self.enter(mode, now);
            granted.push(vcpu);
        }
    }

    fn admits(&self, mode: Lock) -> bool {
        self.holders == 0 || (!self.exclusive && mode == Lock::Shared)
    }

    fn enter(&mut self, mode: Lock, now: u64) {
        if self.holders == 0 {
            self.since = now;
            self.exclusive = mode == Lock::Exclusive;
        }
        self.holders += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_and_nobody_overtakes_a_waiting_writer() {
        let mut lock = MmuLock::default();
        let mut granted = Vec::new();
        assert!(lock.acquire(0, Lock::Shared, 0));
        assert!(lock.acquire(1, Lock::Shared, 1));
        assert!(!lock.acquire(2, Lock::Exclusive, 2));
        assert!(!lock.acquire(3, Lock::Shared, 3), "behind the writer");
        lock.release(10, &mut granted);
        assert!(granted.is_empty());
        lock.release(20, &mut granted);
        assert_eq!(granted, [2]);
        lock.release(30, &mut granted);
        assert_eq!(granted, [2, 3]);
        lock.release(40, &mut granted);
        let LockAccount { acquisitions, contended, exclusive, shared, waited, longest_queue } = lock.account;
        assert_eq!((acquisitions, contended, exclusive, shared, waited, longest_queue), (4, 2, 10, 30, 45, 2));
    }
}
