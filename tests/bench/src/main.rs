//! Measures build daemons over the wire: the same workloads against one address, or two in turn.
//!
//! Everything a workload needs is made here from scratch and a static busybox, so nothing is
//! pulled and both daemons do the same work. Rounds alternate between the daemons, medians are
//! printed, and the table is Markdown.

mod crowds;
mod fixture;
mod graphs;
mod images;
mod lazy;
mod memory;
mod registry;
mod start;
mod table;
mod workloads;

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use client::{Address, Client, ConnectOptions};

use images::{Daemon, Shelf};
use table::{Table, Value};
use workloads::{Scale, Workload};

/// Measure one daemon, or two against each other
#[derive(Parser)]
#[command(max_term_width = 100)]
struct Cli {
    /// Daemon to measure
    #[arg(long, value_name = "ADDRESS")]
    addr: Option<Address>,
    /// Daemon to compare with
    #[arg(long, value_name = "ADDRESS", requires = "addr")]
    against: Option<Address>,
    /// Names for the table's columns
    #[arg(long, value_delimiter = ',', default_value = "A,B")]
    names: Vec<String>,
    /// Command lines for `start`, one a daemon; {addr} and {root} are replaced
    #[arg(long, value_name = "COMMAND")]
    daemon: Vec<String>,
    /// Process ids for `memory`, if the sockets do not tell them
    #[arg(long, value_delimiter = ',')]
    pid: Vec<i32>,
    /// Measurements of each workload and daemon
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Files of `ctx`
    #[arg(long, default_value_t = 20_000)]
    files: usize,
    /// Size of `big-oci`
    #[arg(long, default_value_t = 512)]
    mib: usize,
    /// Vertices of `llb-deep` and `llb-wide`
    #[arg(long, default_value_t = 10_000)]
    vertices: usize,
    /// MiB of the images that are pushed, pulled and loaded
    #[arg(long, default_value_t = 1024)]
    image_mib: usize,
    /// Files of `export-tree`
    #[arg(long, default_value_t = 50_000)]
    tree_files: usize,
    /// Static busybox
    #[arg(long, default_value = "/bin/busybox")]
    busybox: PathBuf,
    /// Workloads to run, in order [default: all]
    #[arg(value_enum)]
    workloads: Vec<Workload>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let all = || <Workload as clap::ValueEnum>::value_variants().to_vec();
    let chosen = if cli.workloads.is_empty() { all() } else { cli.workloads.clone() };
    let mut daemons = Vec::new();
    for (index, address) in cli.addr.iter().chain(&cli.against).enumerate() {
        let client = Client::connect(&ConnectOptions::new(address.clone())).await?;
        let given = cli.pid.get(index).copied();
        let pid = given.or_else(|| memory::daemon_of(client.address()).ok());
        daemons.push(Daemon { client, pid });
    }
    let scale = Scale {
        files: cli.files,
        mib: cli.mib,
        vertices: cli.vertices,
        image_mib: cli.image_mib,
        tree_files: cli.tree_files,
        busybox: cli.busybox.clone(),
    };
    let mut shelf = Shelf::new();
    let mut table =
        Table::new(&cli.names[..daemons.len().max(cli.daemon.len()).min(cli.names.len())]);
    for (position, workload) in chosen.iter().copied().enumerate() {
        match workload {
            Workload::Start => {
                for (index, command) in cli.daemon.iter().enumerate() {
                    for _ in 0..cli.rounds {
                        let took = start::measure(command).await?;
                        table.add("start: first ListWorkers", index, took.into());
                    }
                }
            }
            Workload::Memory => {
                for (index, daemon) in daemons.iter().enumerate() {
                    let address = daemon.client.address();
                    let pid = daemon.pid.with_context(|| format!("give {address}'s --pid"))?;
                    let label = if position == 0 { "memory: idle" } else { "memory: afterwards" };
                    table.add(label, index, Value::Bytes(memory::resident(pid)?));
                }
            }
            _ => {
                for round in 0..cli.rounds {
                    for (index, daemon) in daemons.iter().enumerate() {
                        eprintln!("{workload:?} round {} {}", round + 1, cli.names[index]);
                        let times = workloads::run(workload, daemon, &mut shelf, &scale).await;
                        let times = times.with_context(|| {
                            format!("{workload:?} against {}", daemon.client.address())
                        })?;
                        for (label, value) in times {
                            table.add(label, index, value);
                        }
                        // Let clean-up of this round not disturb the next one.
                        tokio::time::sleep(Duration::from_millis(300)).await;
                    }
                }
            }
        }
    }
    if chosen.iter().any(|workload| workload.leaves_images()) {
        for daemon in &daemons {
            images::prune(&daemon.client).await?;
        }
    }
    print!("{}", table.markdown());
    Ok(())
}
