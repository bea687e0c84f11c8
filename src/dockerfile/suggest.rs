//! "Did you mean": the nearest of some known words.

/// The word of `known` that `word` is most likely a slip of; `None` if none is near.
/// Upper and lower case are the same.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let word: Vec<char> = word.chars().take(64).flat_map(char::to_lowercase).collect();
    known
        .iter()
        .map(|&candidate| {
            let letters: Vec<char> = candidate.chars().flat_map(char::to_lowercase).collect();
            (distance(&word, &letters), candidate)
        })
        .filter(|&(distance, candidate)| distance <= (candidate.len() / 2).min(2))
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance.
fn distance(left: &[char], right: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_find_their_word_and_strangers_do_not() {
        let known = ["RUN", "COPY", "ENTRYPOINT"];
        assert_eq!(nearest("RUNN", &known), Some("RUN"));
        assert_eq!(nearest("cpoy", &known), Some("COPY"));
        assert_eq!(nearest("ENTRYPOYNT", &known), Some("ENTRYPOINT"));
        assert_eq!(nearest("services:", &known), None);
    }
}
