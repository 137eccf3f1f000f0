//! Hints for misspelt keys and names.

/// What to write instead of the unknown `word`: the nearest of the `known` words, or all of them.
/// `plural` says what the words are ("keys").
pub fn hint(word: &str, plural: &str, known: &[&str]) -> String {
    let nearest = known
        .iter()
        .map(|known| (distance(known, word), known))
        .min();
    match nearest {
        Some((distance, known)) if distance * 3 <= word.len() => {
            format!("did you mean '{known}'?")
        }
        _ => format!("valid {plural} are: {}", known.join(", ")),
    }
}

/// The Levenshtein distance: characters to insert, remove or replace.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levenshtein_distances() {
        for (left, right, expected) in [
            ("", "", 0),
            ("quota", "quotta", 1),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(left, right), expected);
        }
    }
}
