//! Connections that have had one message each and then say nothing.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Instant;

use super::{Plan, Refused, Target};
use crate::figures::Sample;
use crate::memory::Memory;
use crate::process::CpuReading;

/// What a client says once: whatever a server keeps for a connection, it has by then.
const REQUEST: [u8; 64] = [7; 64];

/// Connections after which a server has what it keeps once.
const FIRST: u32 = 16;

/// Requests of the sample are connections; its memory is what one of them takes.
pub(super) fn play(plan: &Plan) -> Result<Sample, Refused> {
    let pids: Vec<u32> = plan.servers.iter().map(|server| server.pid).collect();
    let mut streams = connect(plan, FIRST)?;
    thread::sleep(plan.warm_up);
    let before = Memory::of_all(&pids)?;
    streams.extend(connect(plan, plan.connections)?);
    thread::sleep(plan.warm_up);
    let memory = Memory::of_all(&pids)?.growth_each(before, u64::from(plan.connections));

    let cpu_before = CpuReading::of_all(&pids)?;
    let start = Instant::now();
    thread::sleep(plan.window);
    let window_ns = start.elapsed().as_nanos() as u64;
    let cpu = CpuReading::of_all(&pids)?.since(&cpu_before);
    Ok(Sample {
        requests: u64::from(plan.connections),
        window_ns,
        server_cpu_ns: cpu.ran_ns,
        server_waited_ns: cpu.waited_ns,
        server_switches: cpu.slices,
        memory,
        ..Sample::default()
    })
}

fn connect(plan: &Plan, count: u32) -> io::Result<Vec<TcpStream>> {
    plan.servers.iter().cycle().take(count as usize).map(connect_once).collect()
}

fn connect_once(server: &Target) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(server.address)?;
    stream.write_all(&REQUEST)?;
    let mut echo = [0; REQUEST.len()];
    stream.read_exact(&mut echo)?;
    Ok(stream)
}
