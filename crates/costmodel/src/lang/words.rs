//! Words in errors: similar ones for hints, long ones cut.

/// The characters of a name that an error shows at most.
const SHOWN: usize = 60;

/// A name for an error: as it is, or its beginning where it has no end.
pub(crate) fn short(name: &str) -> String {
    match name.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

/// The most similar of `known`, where one is similar enough to be meant.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let limit = 1 + name.chars().count() / 4;
    let near = known.map(|word| (distance(word, name), word)).filter(|(distance, _)| *distance <= limit);
    near.min().map(|(_, word)| word.to_owned())
}

/// How many characters must be inserted, removed or replaced to turn one word into the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    // Nobody misspells a name at great length; the rest would only cost time.
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_long_names_are_cut() {
        assert_eq!(short("faults"), "faults");
        assert_eq!(short(&"ä".repeat(SHOWN)), "ä".repeat(SHOWN));
        assert_eq!(short(&"ä".repeat(900_000)), "ä".repeat(SHOWN) + "…");
    }

    #[test]
    fn only_similar_words_are_offered() {
        let known = || ["faults", "exits", "walks"].into_iter();
        assert_eq!(nearest("fault", known()).as_deref(), Some("faults"));
        assert_eq!(nearest("exist", known()).as_deref(), Some("exits"));
        assert_eq!(nearest("banana", known()), None);
        assert_eq!(nearest("", known()), None);
    }
}
