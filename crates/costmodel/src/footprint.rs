//! How many tables it takes to map what is used: exact for dense use, an exact expectation for random sparse use.
//!
//! A table has 512 entries, so one table of level l covers 512^l pages of 4 KiB. Whether guest, shadow or nested tables: the
//! same tree. Source of the sparse form: the hypergeometric probability that none of a table's pages is among those drawn.

pub mod predict;

/// Entries of a table.
pub const ENTRIES: u64 = 512;
/// Beyond this many factors a product is taken through the logarithm of the gamma function.
const FACTORS: u64 = 1 << 16;

/// Pages of 4 KiB that one table of `level` covers; the largest number for levels beyond any.
#[must_use]
pub fn pages_of_table(level: u32) -> u64 {
    ENTRIES.checked_pow(level).unwrap_or(u64::MAX)
}

/// Tables of `level` that map all pages of these areas, each given by its first 4 KiB page and its length in pages. Areas may
/// share tables; each table counts once. A 2 MiB page needs no table of level 1: ask from level 2 up.
#[must_use]
pub fn dense(areas: &[(u64, u64)], level: u32) -> u64 {
    let span = pages_of_table(level);
    let last = |(first, pages): (u64, u64)| first.saturating_add(pages - 1) / span;
    let mut ranges: Vec<_> =
        areas.iter().filter(|(_, pages)| *pages > 0).map(|area| (area.0 / span, last(*area))).collect();
    ranges.sort_unstable();
    let mut counted: u64 = 0;
    let mut next: u64 = 0;
    for (first, last) in ranges {
        let first = first.max(next);
        if last >= first {
            counted = counted.saturating_add((last - first).saturating_add(1));
            next = last.saturating_add(1);
        }
    }
    counted
}

/// The expected number of tables of `level` that hold a page, where `touched` distinct pages are drawn at random from an area of
/// `pages` pages that begins at page `first`. Exact: the draw is without replacement.
#[must_use]
pub fn sparse(first: u64, pages: u64, touched: u64, level: u32) -> f64 {
    over_tables(first, pages, level, |share| 1.0 - none_drawn(pages, touched.min(pages), share))
}

/// The same where pages are drawn `draws` times *with* replacement: accesses at random, of which some hit the same page.
#[must_use]
pub fn sparse_draws(first: u64, pages: u64, draws: u64, level: u32) -> f64 {
    let (all, draws) = (float(pages), float(draws));
    if draws == 0.0 {
        return 0.0;
    }
    over_tables(first, pages, level, |share| {
        if share == pages { 1.0 } else { -libm::expm1(draws * libm::log1p(-float(share) / all)) }
    })
}

/// The expected number of distinct pages among `draws` drawn with replacement.
#[must_use]
pub fn distinct_pages(pages: u64, draws: u64) -> f64 {
    sparse_draws(0, pages, draws, 0)
}

/// Sums over the tables of an area what `of` gives for the number of the area's pages in a table. All but the first and the
/// last hold as many as each other.
fn over_tables(first: u64, pages: u64, level: u32, of: impl Fn(u64) -> f64) -> f64 {
    if pages == 0 {
        return 0.0;
    }
    let span = pages_of_table(level);
    let head = (span - first % span).min(pages);
    let (whole, tail) = ((pages - head) / span, (pages - head) % span);
    let mut sum = of(head);
    if whole > 0 {
        sum += float(whole) * of(span);
    }
    if tail > 0 {
        sum += of(tail);
    }
    sum
}

/// The probability that none of `share` of the pages is among `touched` drawn from `pages`: C(n - m, k) / C(n, k).
fn none_drawn(pages: u64, touched: u64, share: u64) -> f64 {
    // It is the same with the roles of the two swapped: take the shorter product.
    let (short, long) = (touched.min(share), touched.max(share));
    let left = pages - long;
    if short > left {
        return 0.0;
    }
    let log = if short <= FACTORS {
        (0..short).map(|i| libm::log1p(-float(long) / float(pages - i))).sum()
    } else {
        let gamma = |n: u64| libm::lgamma(float(n) + 1.0);
        gamma(left) - gamma(left - short) - (gamma(pages) - gamma(pages - short))
    };
    libm::exp(log)
}

#[expect(clippy::cast_precision_loss, reason = "pages of an address space of 64 bits number fewer than 2^52")]
fn float(n: u64) -> f64 {
    n as f64
}
