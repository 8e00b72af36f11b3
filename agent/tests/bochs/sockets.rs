//! Who listens where, as the kernel tells it (`/proc/PID/net`, proc(5)).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// State of a TCP socket that takes connections, and of a UDP socket that takes packets from anybody.
const OPEN: [(&str, &str); 4] = [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")];

/// What takes connections in the network that process `pid` lives in.
pub fn listeners_in_network_of(pid: i32) -> Vec<String> {
    open(&pid.to_string()).map(|(address, _)| address.to_string()).collect()
}

/// The network interfaces there.
pub fn interfaces_in_network_of(pid: i32) -> Vec<String> {
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).expect("interfaces");
    table.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

/// What process `pid` holds open in *this* network to somebody outside of this host.
pub fn open_here(pid: i32) -> Vec<String> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors");
    let inodes: BTreeSet<String> = descriptors
        .filter_map(|entry| {
            let target = std::fs::read_link(entry.ok()?.path()).ok()?;
            Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect();
    open("self")
        .filter(|(address, inode)| !address.ip().is_loopback() && inodes.contains(inode))
        .map(|(address, _)| address.to_string())
        .collect()
}

/// Local address and inode of every open socket in a process's network.
fn open(process: &str) -> impl Iterator<Item = (SocketAddr, String)> {
    let process = process.to_owned();
    OPEN.iter().flat_map(move |(protocol, state)| {
        let table = std::fs::read_to_string(format!("/proc/{process}/net/{protocol}")).unwrap_or_default();
        let rows = table.lines().skip(1).filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words.get(3)? == state).then(|| Some((address(words.get(1)?)?, (*words.get(9)?).to_owned())))?
        });
        rows.collect::<Vec<_>>()
    })
}

/// `ADDRESS:PORT` in hexadecimal; the address in 32-bit words of the host's order.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| Some(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let ip: IpAddr = match address.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        _ => {
            let mut bytes = [0; 16];
            for part in 0..4 {
                bytes[part * 4..part * 4 + 4].copy_from_slice(&word(part * 8)?);
            }
            Ipv6Addr::from(bytes).into()
        }
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}
