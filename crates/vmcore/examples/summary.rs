//! Prints the summary of a dump as JSON: `cargo run -p crashyard-vmcore --example summary -- FILE`.

use crashyard_vmcore::{Limits, summarise};

fn main() {
    let path = std::env::args_os().nth(1).expect("usage: summary FILE");
    let file = std::fs::File::open(path).expect("the dump can be opened");
    match summarise(&file, &Limits::default()) {
        Ok(summary) => println!("{}", serde_json::to_string_pretty(&summary).expect("a summary is plain data")),
        Err(error) => eprintln!("{error}"),
    }
}
