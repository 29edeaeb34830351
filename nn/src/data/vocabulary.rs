//! Words, and their numbers.
//!
//! ```text
//! "It's a ''gem'', really!"  ── words ──►  it's  a  gem  really  !  ── encode ──►  17  4  1  88  30  0  0
//!                                                                                         │          └──┴─ padding
//!                                                                                         └─ unknown
//! ```

use std::collections::HashMap;

/// The words of a text in lower case. A word is a run of letters and digits, with single apostrophes inside; `!` and
/// `?` are words too. All else separates.
///
/// ```
/// let words: Vec<String> = nn::data::words("It's a ''gem'', really!").collect();
/// assert_eq!(words, ["it's", "a", "gem", "really", "!"]);
/// ```
pub fn words(text: &str) -> impl Iterator<Item = String> {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(|c: char| !c.is_alphanumeric() && c != '!' && c != '?');
        let first = rest.chars().next()?;
        let mut len = first.len_utf8();
        if first.is_alphanumeric() {
            let mut characters = rest.char_indices().peekable();
            while let Some((at, c)) = characters.next() {
                let joins = c == '\'' && characters.peek().is_some_and(|(_, next)| next.is_alphanumeric());
                if !c.is_alphanumeric() && !joins {
                    break;
                }
                len = at + c.len_utf8();
            }
        }
        let (word, after) = rest.split_at(len);
        rest = after;
        Some(word.to_lowercase())
    })
}

/// The words that are known, by number: the most frequent first, those equally frequent by the alphabet.
///
/// ```
/// use nn::data::Vocabulary;
/// let vocabulary = Vocabulary::new(["to be or not to be", "to do"], 2, 1000);
/// assert_eq!((vocabulary.size(), vocabulary.word(2), vocabulary.word(3)), (4, Some("to"), Some("be")));
/// assert_eq!(vocabulary.encode("To be, Hamlet", 5), [2, 3, Vocabulary::UNKNOWN, 0, 0]);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Vocabulary {
    /// Number 2 and so on.
    words: Vec<String>,
    numbers: HashMap<String, usize>,
}

impl Vocabulary {
    /// What fills a text up to its length.
    pub const PADDING: usize = 0;
    /// What stands for every word that is not known.
    pub const UNKNOWN: usize = 1;
    /// The number of the first word.
    const FIRST: usize = 2;

    /// The words that come up at least `least` times in some texts; of these the `most` most frequent.
    pub fn new<T: AsRef<str>>(texts: impl IntoIterator<Item = T>, least: usize, most: usize) -> Self {
        let mut counts: HashMap<String, usize> = HashMap::new();
        for text in texts {
            for word in words(text.as_ref()) {
                *counts.entry(word).or_default() += 1;
            }
        }
        let mut counts: Vec<_> = counts.into_iter().filter(|&(_, count)| count >= least).collect();
        counts.sort_unstable_by(|(a, of_a), (b, of_b)| of_b.cmp(of_a).then_with(|| a.cmp(b)));
        counts.truncate(most);
        Self::with_words(counts.into_iter().map(|(word, _)| word))
    }

    /// Given words, numbered from 2 on in their order: those of a vocabulary that was saved.
    pub fn with_words(words: impl IntoIterator<Item = String>) -> Self {
        let words: Vec<String> = words.into_iter().collect();
        let numbers = words.iter().enumerate().map(|(at, word)| (word.clone(), Self::FIRST + at)).collect();
        Self { words, numbers }
    }

    /// How many numbers there are, padding and unknown included: the rows of an embedding.
    pub fn size(&self) -> usize {
        Self::FIRST + self.words.len()
    }

    /// The words, from number 2 on.
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// The word of a number.
    pub fn word(&self, number: usize) -> Option<&str> {
        self.words.get(number.checked_sub(Self::FIRST)?).map(String::as_str)
    }

    /// The number of a word in lower case.
    pub fn number(&self, word: &str) -> usize {
        self.numbers.get(word).copied().unwrap_or(Self::UNKNOWN)
    }

    /// The numbers of the first `len` words of a text, filled up with [`Vocabulary::PADDING`].
    pub fn encode(&self, text: &str, len: usize) -> Vec<usize> {
        let mut numbers: Vec<usize> = words(text).take(len).map(|word| self.number(&word)).collect();
        numbers.resize(len, Self::PADDING);
        numbers
    }
}
