//! Pre-tokenizers: how a text is split into words before byte pair encoding. One table, with a row for each.
//!
//! A pre-tokenizer is a list of regular expressions. Each splits the pieces that the previous one produced: a match is a
//! piece, and so is the text between two matches. The expressions are those that the models' authors published.

use std::borrow::Cow;

use regex_automata::{Input, meta::Regex};
use unicode_normalization::UnicodeNormalization;

use super::byte_pair::Spelling;
use crate::TokenizerError;

/// A row of the table.
struct Row {
    /// The values of `tokenizer.ggml.pre` that mean this row.
    names: &'static [&'static str],
    steps: &'static [Cut],
    /// A word that is a token is used as it is, without merging (`ignore_merges`).
    whole_words: bool,
    /// The text is brought into normalization form C first.
    compose: bool,
    /// A beginning-of-text token is put in front unless the file says otherwise.
    add_bos: bool,
    /// How tokens and merges are written.
    spelling: Spelling,
}

/// What a step does with a match of its regular expression.
enum Cut {
    /// It is a piece.
    At(&'static str),
    /// It is cut into pieces of three characters, counted from its end.
    Threes(&'static str),
    /// It is a piece, and the text between two matches is dropped.
    Only(&'static str),
}

use Cut::{At, Only, Threes};

const PLAIN: Row = Row {
    names: &[],
    steps: &[],
    whole_words: false,
    compose: false,
    add_bos: false,
    spelling: Spelling::ByteCharacters,
};

const GPT2: Cut = At(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+");
const LLAMA3: Cut = At(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const QWEN2: Cut = At(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const QWEN35: Cut = At(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const GPT4O: Cut = At(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const YOUTU: Cut = At(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const KIMI: Cut = At(
    r"\p{Han}+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const TEKKEN: Cut = At(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const CJK: Cut = At(r"[一-龥\u{3040}-ゟ゠-ヿ]+");
const DEEPSEEK3: Cut = At(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
);
const SPARK: Cut = At(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##,
);
/// Letters of two cases, as DeepSeek's first tokenizers list them.
const CASED: Cut = At(
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚ\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\u{1F59}\u{1F5B}\u{1F5D}\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}\u{1FBE}\u{1FC2}-\u{1FC4}\u{1FC6}-\u{1FCC}\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}\u{1FF2}-\u{1FF4}\u{1FF6}-\u{1FFC}\u{2102}\u{2107}\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}\u{2124}\u{2126}\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}\u{213C}-\u{213F}\u{2145}-\u{2149}\u{214E}\u{2183}\u{2184}Ⰰ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
);
const HAN_AND_HANGUL: Cut = At(r"[一-龥ࠀ-一가-\u{D7FF}]+");
const LINE_ENDS: Cut = At(r"[\r\n]");
const LINES: Cut = At(r"[^\n]+|\n+");
const NUMBERS: Cut = At(r"\p{N}+");
const DIGIT: Cut = At(r"\p{N}");
const UP_TO_THREE: Cut = At(r"\p{N}{1,3}");
const THREE_DIGITS: Cut = At("[0-9][0-9][0-9]");
const BLOOM: Cut = At(r" ?[^(\s|.,!?…。，、।۔،)]+");

const TABLE: &[Row] = &[
    Row {
        names: &[
            "gpt-2",
            "gpt2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
        ],
        steps: &[GPT2],
        ..PLAIN
    },
    Row { names: &["mpt", "olmo", "modern-bert"], steps: &[GPT2], compose: true, ..PLAIN },
    Row {
        names: &["smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"],
        steps: &[DIGIT, GPT2],
        ..PLAIN
    },
    Row { names: &["command-r"], steps: &[DIGIT, GPT2], compose: true, ..PLAIN },
    Row {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        steps: &[LLAMA3],
        whole_words: true,
        add_bos: true,
        ..PLAIN
    },
    Row { names: &["dbrx", "smaug-bpe", "chatglm-bpe"], steps: &[LLAMA3], ..PLAIN },
    Row { names: &["glm4", "glm5"], steps: &[LLAMA3], whole_words: true, ..PLAIN },
    Row {
        names: &["minicpm5"],
        steps: &[
            UP_TO_THREE,
            At(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
        ],
        whole_words: true,
        ..PLAIN
    },
    Row {
        names: &["jais-2"],
        steps: &[At(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}",
        )],
        ..PLAIN
    },
    Row {
        names: &["qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan", "kormo", "f2llmv2"],
        steps: &[QWEN2],
        compose: true,
        ..PLAIN
    },
    Row { names: &["grok-2", "solar-open"], steps: &[QWEN2], ..PLAIN },
    Row { names: &["laguna"], steps: &[LINES, QWEN2], ..PLAIN },
    Row { names: &["qwen35"], steps: &[QWEN35], compose: true, ..PLAIN },
    Row {
        names: &["ufakzeka"],
        steps: &[At(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")],
        ..PLAIN
    },
    Row {
        names: &["bailingmoe", "bailingmoe2", "llada-moe"],
        steps: &[At(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        )],
        ..PLAIN
    },
    Row {
        names: &["seed-coder"],
        steps: &[At(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
        ..PLAIN
    },
    Row {
        names: &["exaone-moe"],
        steps: &[At(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        )],
        ..PLAIN
    },
    Row { names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], steps: &[GPT4O], ..PLAIN },
    Row { names: &["granite-embed-multi-97m"], steps: &[GPT4O], whole_words: true, ..PLAIN },
    Row { names: &["tiny_aya", "cohere2moe"], steps: &[Threes(r"\d+\b"), GPT4O], compose: true, ..PLAIN },
    Row { names: &["kimi-k2"], steps: &[KIMI], ..PLAIN },
    Row { names: &["tekken"], steps: &[TEKKEN], whole_words: true, add_bos: true, ..PLAIN },
    Row {
        names: &["youtu"],
        steps: &[At(r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u{3040}-ゟ゠-ヿ]+"), YOUTU],
        whole_words: true,
        ..PLAIN
    },
    Row {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        steps: &[UP_TO_THREE, CJK, DEEPSEEK3],
        ..PLAIN
    },
    Row { names: &["spark2_5"], steps: &[UP_TO_THREE, CJK, SPARK, DIGIT], ..PLAIN },
    Row {
        names: &["deepseek-llm"],
        steps: &[LINE_ENDS, CASED, At(r"\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+"), At(r"\s+$"), HAN_AND_HANGUL, NUMBERS],
        ..PLAIN
    },
    Row {
        names: &["deepseek-coder"],
        steps: &[LINE_ENDS, At(r"\s?\p{L}+"), At(r"\s?\p{P}+"), HAN_AND_HANGUL, DIGIT],
        ..PLAIN
    },
    Row {
        names: &["afmoe"],
        steps: &[
            Threes(r"\p{N}+"),
            At(
                r"[一-鿿㐀-䶿\u{F900}-\u{FAFF}\u{3040}-ゟ゠-ヿ･-ﾟ⼀-\u{2FDF}เ-\u{E7F}\u{E80}-\u{EFF}ក-\u{17FF}က-႟ꩠ-ꩿꧠ-\u{A9FF}가-\u{D7AF}ᄀ-ᇿ]+",
            ),
            DEEPSEEK3,
        ],
        ..PLAIN
    },
    Row { names: &["superbpe"], steps: &[NUMBERS, Threes(r"\d+")], ..PLAIN },
    Row { names: &["falcon"], steps: &[At(r"[\p{P}\$\+<=>\^~\|`]+"), GPT2, THREE_DIGITS], ..PLAIN },
    Row { names: &["bloom", "poro-chat", "gpt3-finnish"], steps: &[BLOOM], ..PLAIN },
    Row { names: &["viking"], steps: &[BLOOM, DIGIT], ..PLAIN },
    Row {
        names: &["chameleon"],
        steps: &[
            At("<sentinel:[0-9]+>"),
            At("(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z"),
            At(r"[\t\n]|    |  "),
            DIGIT,
            At(r"[\p{P}!-/:-@\[-`{-~]"),
            GPT2,
        ],
        add_bos: true,
        ..PLAIN
    },
    Row {
        names: &["gemma4", "granite-embed-multi-311m", "sarvam-moe"],
        steps: &[LINES],
        spelling: Spelling::SpaceMarks,
        ..PLAIN
    },
    Row { names: &["whitespace"], steps: &[Only(r"\S+")], spelling: Spelling::Plain, ..PLAIN },
    Row { names: &["default"], steps: &[At(r"[\p{P}\$\+<=>\^~\|]+"), GPT2, NUMBERS, THREE_DIGITS], ..PLAIN },
];

/// A row of the table, compiled.
pub(crate) struct Pretokenizer {
    row: &'static Row,
    steps: Vec<Step>,
}

/// One regular expression. Many end in alternatives with a look-ahead, which leave the last white space of a run to the
/// word that follows. They are compiled without these, and the rule is applied here: without a look-ahead, matching
/// takes time linear in the text.
struct Step {
    regex: Regex,
    white_space: Option<WhiteSpace>,
    threes: bool,
    only_matches: bool,
}

/// How a run of white space is cut.
#[derive(Clone, Copy)]
enum WhiteSpace {
    /// All but the last character, if a word follows.
    LastApart,
    /// The largest power of two of characters, up to 512, that leaves one if a word follows.
    Powers,
}

/// The alternatives for each rule, and an expression that matches a run of white space.
const WHITE_SPACES: [(&str, &str, WhiteSpace); 2] = [
    (r"|\s+(?!\S)|\s+", r"\s+", WhiteSpace::LastApart),
    (
        r"|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}",
        r"\s{1,513}",
        WhiteSpace::Powers,
    ),
];

/// The number of the pattern of white space in a [`Step`]'s regex.
const WHITE_SPACE: usize = 1;

impl Pretokenizer {
    /// The row that `tokenizer.ggml.pre` names.
    pub fn named(name: &str, field: &str) -> Result<Self, TokenizerError> {
        let Some(row) = TABLE.iter().find(|row| row.names.contains(&name)) else {
            let known: Vec<_> = TABLE.iter().flat_map(|row| row.names).copied().collect();
            return Err(TokenizerError::field(field, format!("{name:?}"), format!("one of {}", known.join(", "))));
        };
        let steps = row.steps.iter().map(|cut| Step::new(cut, field)).collect::<Result<_, _>>()?;
        Ok(Self { row, steps })
    }

    /// Whether a word that is a token is used as it is, without merging.
    pub fn keeps_whole_words(&self) -> bool {
        self.row.whole_words
    }

    /// Whether the text is to be [`compose`]d first.
    pub fn composes(&self) -> bool {
        self.row.compose
    }

    /// Whether a beginning-of-text token is added unless the file says otherwise.
    pub fn adds_bos(&self) -> bool {
        self.row.add_bos
    }

    /// How tokens and merges are written.
    pub fn spelling(&self) -> Spelling {
        self.row.spelling
    }

    /// Calls `word` with each piece of the text in turn.
    pub fn split(&self, text: &str, word: &mut impl FnMut(&str)) {
        split(&self.steps, text, word);
    }
}

/// The text in normalization form C.
pub(crate) fn compose(text: &str) -> Cow<'_, str> {
    match unicode_normalization::is_nfc_quick(text.chars()) {
        unicode_normalization::IsNormalized::Yes => Cow::Borrowed(text),
        _ => Cow::Owned(text.nfc().collect()),
    }
}

fn split(steps: &[Step], text: &str, word: &mut impl FnMut(&str)) {
    let Some((step, rest)) = steps.split_first() else {
        if !text.is_empty() {
            word(text);
        }
        return;
    };
    let mut done = 0;
    while done < text.len() {
        let (start, end) = step.next_match(text, done).unwrap_or((text.len(), text.len()));
        if done < start && !step.only_matches {
            split(rest, &text[done..start], word);
        }
        let mut from = start;
        if step.threes {
            let characters = text[start..end].chars().count();
            for (index, (at, _)) in text[start..end].char_indices().enumerate() {
                if index > 0 && (characters - index).is_multiple_of(3) {
                    split(rest, &text[from..start + at], word);
                    from = start + at;
                }
            }
        }
        if from < end {
            split(rest, &text[from..end], word);
        }
        done = end;
    }
}

impl Step {
    fn new(cut: &Cut, field: &str) -> Result<Self, TokenizerError> {
        let (At(pattern) | Threes(pattern) | Only(pattern)) = *cut;
        let (threes, only_matches) = (matches!(cut, Threes(_)), matches!(cut, Only(_)));
        let with_white_space = |(tail, run, rule)| Some((pattern.strip_suffix(tail)?, run, rule));
        let (regex, white_space) = match WHITE_SPACES.into_iter().find_map(with_white_space) {
            Some((words, run, rule)) => (Regex::new_many(&[words, run]), Some(rule)),
            None => (Regex::new(pattern), None),
        };
        let regex = regex.map_err(|error| TokenizerError::field(field, error.to_string(), "a regular expression"))?;
        Ok(Self { regex, white_space, threes, only_matches })
    }

    /// Start and end of the first match that is not empty at or after `from`.
    fn next_match(&self, text: &str, from: usize) -> Option<(usize, usize)> {
        let found = self.regex.search(&Input::new(text).range(from..))?;
        let (start, end) = (found.start(), found.end());
        let Some(rule) = self.white_space.filter(|_| found.pattern().as_usize() == WHITE_SPACE) else {
            return Some((start, end));
        };
        let run = &text[start..end];
        let characters = run.chars().count();
        let most = characters - usize::from(end < text.len() && characters > 1);
        let taken = match rule {
            WhiteSpace::LastApart => most,
            WhiteSpace::Powers => (1 << most.ilog2()).min(512),
        };
        Some((start, run.char_indices().nth(taken).map_or(end, |(at, _)| start + at)))
    }
}
