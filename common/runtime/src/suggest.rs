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

/// The optimal string alignment distance: characters to insert, remove, replace or swap with their
/// neighbour.
fn distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().collect();
    let right: Vec<char> = right.chars().collect();
    // The distances of the first `i` characters of `left` to all beginnings of `right`.
    let mut rows: Vec<Vec<usize>> = vec![(0..=right.len()).collect()];
    for (i, l) in left.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, r) in right.iter().enumerate() {
            let replaced = rows[i][j] + usize::from(l != r);
            let mut least = replaced.min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *l == right[j - 1] && left[i - 1] == *r {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (left, right, expected) in [
            ("", "", 0),
            ("quota", "quotta", 1),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("last", "lats", 1),
            ("regions", "regoin", 2),
            ("ab", "ba", 1),
        ] {
            assert_eq!(distance(left, right), expected);
        }
    }
}
