//! The `memvirt` command: native, shadow and nested paging side by side.
//!
//! This crate only parses, prints and sets the exit status; what it runs lies in `memvirt-lab` and below. Exit status: 0 where
//! all is well, 1 where a check failed, 2 where the command line or an input is at fault.
#![forbid(unsafe_code)]

mod args;
mod compare;
mod exits;
mod failure;
mod faults;
mod footprint;
mod machines;
mod model;
mod model_calibrate;
mod model_fit;
mod models;
mod nested_virt;
mod output;
mod phase;
mod plan;
mod progress;
mod published;
mod replay;
mod report;
mod scale;
mod trace;
mod walk;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use failure::Status;

fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return failure::usage(&error),
    };
    let status = match &command {
        Command::Compare(args) => compare::compare(args),
        Command::Run(args) => compare::run(args),
        Command::Walk(args) => walk::walk(args),
        Command::Trace { command } => trace::trace(command),
        Command::Replay(args) => replay::replay(args),
        Command::Exits(args) => exits::exits(args),
        Command::NestedVirt(args) => nested_virt::nested_virt(args),
        Command::Model { command } => model::model(command),
        Command::Phase(args) => phase::phase(args),
        Command::Plan { command } => plan::plan(command),
        Command::Faults(args) => faults::faults(args),
        Command::Published(args) => published::published(args),
        Command::Scale(args) => scale::scale(args),
        Command::Footprint(args) => footprint::footprint(args),
        Command::Report(args) => report::report(args),
        Command::Workloads(args) => models::workloads(args),
        Command::Machines(args) => machines::machines(args),
        Command::Regimes => models::regimes(),
    };
    match status {
        Ok(status) => status.into(),
        Err(error) => failure::report(&error),
    }
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        match status {
            Status::Fine => Self::SUCCESS,
            Status::CheckFailed => Self::from(1),
            Status::BadInput => Self::from(2),
        }
    }
}
