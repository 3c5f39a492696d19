//! What is still to be told: each changed member rides on datagrams a bounded number of times, the least told first (Das, Gupta, Motivala,
//! "SWIM", 2002, section 4.1). Only names wait here; what is said is what the table holds in the moment of sending, so an older statement
//! is never told for a newer one, and the queue is never longer than the table.

use std::collections::{BTreeMap, BTreeSet};

/// Members whose last change is still news.
#[derive(Debug, Default)]
pub(super) struct News {
    /// (how often told, node).
    queue: BTreeSet<(u32, u64)>,
    told: BTreeMap<u64, u32>,
}

impl News {
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Nothing is news but this member, if that is.
    pub fn is_only(&self, node: u64) -> bool {
        self.queue.iter().all(|(_, other)| *other == node)
    }

    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// The member changed: it is told from the beginning.
    pub fn add(&mut self, node: u64) {
        if let Some(told) = self.told.insert(node, 0) {
            self.queue.remove(&(told, node));
        }
        self.queue.insert((0, node));
    }

    pub fn remove(&mut self, node: u64) {
        if let Some(told) = self.told.remove(&node) {
            self.queue.remove(&(told, node));
        }
    }

    /// Offers what was told least to `push`, until that has no room; but nothing of `but`, who listens. What has been told `limit` times is
    /// news no more.
    pub fn tell(&mut self, limit: u32, but: u64, mut push: impl FnMut(u64) -> bool) {
        let told: Vec<(u32, u64)> =
            self.queue.iter().copied().filter(|(_, node)| *node != but).take_while(|(_, node)| push(*node)).collect();
        for (count, node) in told {
            self.queue.remove(&(count, node));
            if count + 1 < limit {
                self.queue.insert((count + 1, node));
                self.told.insert(node, count + 1);
            } else {
                self.told.remove(&node);
            }
        }
    }
}

/// How often a change is told in a cluster of `nodes`: lambda · log2.
pub(super) fn tell_limit(lambda: u32, nodes: usize) -> u32 {
    lambda * (nodes + 1).next_power_of_two().trailing_zeros().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_told_comes_first_and_everything_ends() {
        let mut news = News::default();
        (1..=3).for_each(|node| news.add(node));
        let mut said = Vec::new();
        while !news.is_empty() {
            let mut room = 2;
            news.tell(2, 0, |node| {
                room -= 1;
                if room >= 0 {
                    said.push(node);
                }
                room >= 0
            });
        }
        assert_eq!(said, [1, 2, 3, 1, 2, 3]);
        news.add(1);
        news.tell(2, 1, |_| panic!("nobody is told of itself"));
        news.tell(2, 0, |_| true);
        news.add(1);
        assert_eq!((news.len(), news.queue.first()), (1, Some(&(0, 1))), "a new change begins anew");
        news.remove(1);
        assert!(news.is_empty() && news.told.is_empty());
    }

    #[test]
    fn the_limit_grows_with_the_logarithm() {
        assert_eq!([1, 3, 10, 1000].map(|nodes| tell_limit(3, nodes)), [3, 6, 12, 30]);
    }
}
