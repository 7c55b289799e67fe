//! Runs of accesses in the mode `counts`: hits many at a time, misses one by one or, where they are frequent, by walks made
//! ahead ([`crate::foresee`]).

use memvirt_addr::{Acc, Gva};
use memvirt_ops::VcpuId;
use memvirt_tlb::Through;

use super::{Engine, Regime, Request};
use crate::foresee::{Foresight, Lookout};
use crate::ledger::Ledger;
use crate::seam::{Horizon, Stop};

impl<R: Regime> Engine<R> {
    /// [`Platform::accesses`] in the mode `counts`: hits in a run, misses one by one.
    #[inline]
    pub(super) fn counted_accesses(
        &mut self,
        v: VcpuId,
        run: &[Acc],
        horizon: Horizon,
        out: &mut Ledger,
    ) -> (usize, Stop) {
        let mut lookout = self.lookout.take().unwrap_or_default();
        lookout.begin();
        let end = self.look_out_for(v, run, horizon, &mut lookout, out);
        self.lookout = Some(lookout);
        end
    }

    #[inline]
    fn look_out_for(
        &mut self,
        v: VcpuId,
        run: &[Acc],
        horizon: Horizon,
        lookout: &mut Lookout,
        out: &mut Ledger,
    ) -> (usize, Stop) {
        let vcpu = &self.vcpus[v.index()];
        let (cpu, tag, mut done) = (vcpu.cpu, vcpu.tag(), 0);
        let stop = loop {
            done += self.cpus[cpu].tlb.hits(tag, &run[done..]);
            let Some(acc) = run.get(done) else { break Stop::Done };
            let known = lookout.at_miss(run, done, |ahead, found| self.foresee(v, done, horizon, out, ahead, found));
            if known.is_some() {
                lookout.count(done, Through { done: 1, filled: 1 }, &mut out.counters);
                self.cpus[cpu].tlb.fill_ready(tag, known);
                done = self.go_through(v, run, done + 1, horizon, lookout, out);
                continue;
            }
            let request = Request { acc: *acc, store: None, ip: Gva::ZERO, element: 0 };
            let effects = |out: &Ledger| (out.counters.ad_updates, out.counters.total_exits());
            let (walks, before) = (out.counters.walks, effects(out));
            match self.serve(v, &request, done, horizon, out) {
                Ok(_) => done += 1,
                Err(stop) => break stop,
            }
            // One walk that set no bit and did not exit has only read; anything else may have changed tables.
            if out.counters.walks != walks + 1 || effects(out) != before {
                lookout.forget();
            }
        };
        (done, stop)
    }

    /// Goes on from the access at `done` while what happens is known ahead, and looks at more as long as many miss; returns
    /// where it stops.
    #[inline]
    fn go_through(
        &mut self,
        v: VcpuId,
        run: &[Acc],
        mut done: usize,
        horizon: Horizon,
        lookout: &mut Lookout,
        out: &mut Ledger,
    ) -> usize {
        let (cpu, tag) = (self.vcpus[v.index()].cpu, self.vcpus[v.index()].tag());
        let mut many = false;
        loop {
            if done == lookout.seen() && many && done < run.len() {
                lookout.look(run, done, |ahead, found| self.foresee(v, done, horizon, out, ahead, found));
            }
            let ready = lookout.from(done);
            if ready.is_empty() {
                return done;
            }
            let through = self.cpus[cpu].tlb.through(tag, &run[done..], ready);
            if through.done == 0 {
                return done;
            }
            many = lookout.count(done, through, &mut out.counters);
            done += through.done;
        }
    }

    /// Asks the regime about the next accesses, where walks concern nobody else.
    pub(crate) fn foresee(
        &mut self,
        v: VcpuId,
        at: usize,
        horizon: Horizon,
        out: &mut Ledger,
        ahead: &[Acc],
        found: &mut Foresight,
    ) {
        if self.cpus[self.vcpus[v.index()].cpu].mmu.is_none() {
            self.with(v, at, horizon, out, |regime, cx| regime.foresee(cx, ahead, found));
        }
    }
}
