//! What the fake server knows.

use crate::server::{Books, Server};
use crashyard_protocol::agent::Report;

/// Returns when the server knows what is wanted.
pub async fn until(server: &Server, wanted: impl Fn(&Books) -> bool) {
    loop {
        let mut news = std::pin::pin!(server.shared.news.notified());
        news.as_mut().enable();
        if read(server, &wanted) {
            return;
        }
        news.await;
    }
}

/// What it knows now.
pub fn read<T>(server: &Server, reading: impl FnOnce(&Books) -> T) -> T {
    reading(&server.shared.books.lock().unwrap())
}

/// How many reports of a kind it has.
pub fn count(books: &Books, wanted: impl Fn(&Report) -> bool) -> usize {
    books.reports.iter().filter(|one| wanted(&one.report)).count()
}
