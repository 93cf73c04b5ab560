#!/usr/bin/env python3
"""Writes crates/basert-text/tests/data/corpus.json: the strings on which tokenizers are compared.

Run by hand, with Python 3.11 or later and nothing else; the output is the same every time. After a change run
tools/tokenizer-goldens.py too.
"""

import json
import pathlib
import random
import unicodedata

OUTPUT = pathlib.Path(__file__).parent.parent / "crates/basert-text/tests/data/corpus.json"

rng = random.Random(20260301)
corpus = []


def add(*strings):
    corpus.extend(strings)


# --- sentences in many languages -----------------------------------------------------------------------------------

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "All human beings are born free and equal in dignity and rights.",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "Portez ce vieux whisky au juge blond qui fume, dès Noël où un zéphyr haï me vêt.",
    "Todos los seres humanos nacen libres e iguales en dignidad y derechos.",
    "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia y frío; añoraba a su querido cachorro.",
    "Todos os seres humanos nascem livres e iguais em dignidade e em direitos.",
    "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti.",
    "Alle mensen worden vrij en gelijk in waardigheid en rechten geboren.",
    "Alla människor är födda fria och lika i värde och rättigheter.",
    "Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan.",
    "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw.",
    "Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti a práv.",
    "Minden emberi lény szabadon születik és egyenlő méltósága és joga van.",
    "Toate ființele umane se nasc libere și egale în demnitate și în drepturi.",
    "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. İstanbul'da ılık.",
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi.",
    "Semua manusia dilahirkan bebas dan samarata dari segi kemuliaan dan hak-hak.",
    "Binadamu wote wamezaliwa huru, hadhi na haki zao ni sawa.",
    "Все люди рождаются свободными и равными в своём достоинстве и правах.",
    "Всі люди народжуються вільними і рівними у своїй гідності та правах. Ґанок, їжак.",
    "Всички хора се раждат свободни и равни по достойнство и права.",
    "Сва људска бића рађају се слободна и једнака у достојанству и правима.",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. ἀρχὴ ἄνδρα μοι ἔννεπε, Μοῦσα",
    "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם. שָׁלוֹם",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. مَرْحَبًا",
    "تمام ابنای بشر آزاد به دنیا می‌آیند و از لحاظ حیثیت و حقوق با هم برابرند.",
    "تمام انسان آزاد اور حقوق و عزت کے اعتبار سے برابر پیدا ہوئے ہیں۔",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে।",
    "ਸਾਰਾ ਮਨੁੱਖੀ ਪਰਿਵਾਰ ਆਪਣੀ ਮਹਿਮਾ ਤੇ ਹੱਕਾਂ ਦੇ ਪੱਖੋਂ ਜਨਮ ਤੋਂ ਹੀ ਆਜ਼ਾਦ ਹੈ।",
    "પ્રતિષ્ઠા અને અધિકારોની દૃષ્ટિએ સર્વ માનવો જન્મથી સ્વતંત્ર અને સમાન હોય છે.",
    "மனிதப் பிறவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்.",
    "ప్రతిపత్తిస్వత్వముల విషయమున మానవులెల్లరును జన్మతః స్వతంత్రులును సమానులును.",
    "ಎಲ್ಲಾ ಮಾನವರೂ ಸ್ವತಂತ್ರರಾಗಿಯೇ ಜನಿಸಿದ್ದಾರೆ.",
    "മനുഷ്യരെല്ലാവരും തുല്യാവകാശങ്ങളോടും അന്തസ്സോടും സ്വാതന്ത്ര്യത്തോടുംകൂടി ജനിച്ചവരാണ്.",
    "සියලු මනුෂ්‍යයෝ නිදහස්ව උපත ලබා ඇත.",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "ມະນຸດເກີດມາມີສິດເສລີພາບ ແລະ ສະເໝີໜ້າກັນ",
    "လူတိုင်းသည် တူညီလွတ်လပ်သော ဂုဏ်သိက္ခာဖြင့် မွေးဖွားလာသူများဖြစ်သည်။",
    "មនុស្សទាំងអស់ កើតមកមានសេរីភាព និងសមភាព",
    "འགྲོ་བ་མིའི་རིགས་རྒྱུད་ཡོངས་ལ་སྐྱེས་ཙམ་ཉིད་ནས་",
    "ყველა ადამიანი იბადება თავისუფალი და თანასწორი თავისი ღირსებითა და უფლებებით.",
    "Բոլոր մարդիկ ծնվում են ազատ ու հավասար իրենց արժանապատվությամբ ու իրավունքներով։",
    "የሰው ልጅ ሁሉ ሲወለድ ነጻና በክብርና በመብትም እኩልነት ያለው ነው።",
    "ᎾᏍᎩᏯ ᏂᎦᏓ ᎠᏂᏴᏫ ᎨᎦᏛᏅᎢ", "ᐃᓅᓕᕐᓂᑕᒪᐃᓐᓂᖅ ᐃᓄᐃᑦ", "ᠬᠦᠮᠦᠨ ᠪᠦᠷ ᠲᠥᠷᠥᠵᠦ",
    "人人生而自由，在尊严和权利上一律平等。", "人人生而自由,在尊嚴和權利上一律平等。他們賦有理性和良心",
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "いろはにほへと ちりぬるを ｶﾀｶﾅ ﾊﾝｶｸ ㍿ ①②③",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.", "ㄱㄴㄷ ㅏㅑㅓ 각 각",
    "Ĉiuj homoj estas denaske liberaj kaj egalaj laŭ digno kaj rajtoj.",
    "Rugadh na daoine uile saor agus comhionann ina ndínit agus ina gcearta.",
    "Hver maður er borinn frjáls og jafn öðrum að virðingu og réttindum. Þórður ðæ",
    "Ọmọ ènìyàn ni a bí ní òmìnira; iyì àti ẹ̀tọ́ kọ̀ọ̀kan sì dọ́gba.",
]
add(*SENTENCES)
for sentence in SENTENCES:
    add(" " + sentence, sentence.upper(), sentence[: len(sentence) // 2] + "\n\n" + sentence[len(sentence) // 2 :])
for form in ("NFC", "NFD", "NFKC", "NFKD"):
    add(*(unicodedata.normalize(form, sentence) for sentence in SENTENCES[3:48:3]))

# --- every script: random assigned characters of each block --------------------------------------------------------

BLOCKS = [
    (0x0020, 0x007F), (0x00A0, 0x0100), (0x0100, 0x0180), (0x0180, 0x0250), (0x0250, 0x02B0), (0x02B0, 0x0300),
    (0x0300, 0x0370), (0x0370, 0x0400), (0x0400, 0x0500), (0x0500, 0x0530), (0x0530, 0x0590), (0x0590, 0x0600),
    (0x0600, 0x0700), (0x0700, 0x0750), (0x0780, 0x07C0), (0x07C0, 0x0800), (0x0800, 0x0840), (0x0900, 0x0980),
    (0x0980, 0x0A00), (0x0A00, 0x0A80), (0x0A80, 0x0B00), (0x0B00, 0x0B80), (0x0B80, 0x0C00), (0x0C00, 0x0C80),
    (0x0C80, 0x0D00), (0x0D00, 0x0D80), (0x0D80, 0x0E00), (0x0E00, 0x0E80), (0x0E80, 0x0F00), (0x0F00, 0x1000),
    (0x1000, 0x10A0), (0x10A0, 0x1100), (0x1100, 0x1200), (0x1200, 0x1380), (0x13A0, 0x1400), (0x1400, 0x1680),
    (0x1680, 0x16A0), (0x16A0, 0x1700), (0x1700, 0x1740), (0x1780, 0x1800), (0x1800, 0x18B0), (0x1900, 0x1950),
    (0x1980, 0x19E0), (0x1A00, 0x1A20), (0x1B00, 0x1B80), (0x1C00, 0x1C50), (0x1D00, 0x1D80), (0x1E00, 0x1F00),
    (0x1F00, 0x2000), (0x2000, 0x2070), (0x2070, 0x20D0), (0x2100, 0x2190), (0x2190, 0x2200), (0x2200, 0x2300),
    (0x2300, 0x2400), (0x2460, 0x2500), (0x2500, 0x25A0), (0x25A0, 0x2600), (0x2600, 0x27C0), (0x2800, 0x2900),
    (0x2C00, 0x2C60), (0x2C80, 0x2D00), (0x2D30, 0x2D80), (0x3000, 0x3040), (0x3040, 0x30A0), (0x30A0, 0x3100),
    (0x3100, 0x3130), (0x3130, 0x3190), (0x3200, 0x3400), (0x3400, 0x4DC0), (0x4E00, 0x9FA6), (0xA000, 0xA490),
    (0xA4D0, 0xA500), (0xA500, 0xA640), (0xA640, 0xA6A0), (0xA720, 0xA800), (0xA840, 0xA880), (0xA980, 0xA9E0),
    (0xAA00, 0xAA60), (0xAB70, 0xABC0), (0xABC0, 0xAC00), (0xAC00, 0xD7A4), (0xE000, 0xE100), (0xF900, 0xFB00),
    (0xFB00, 0xFB50), (0xFB50, 0xFE00), (0xFE20, 0xFE70), (0xFE70, 0xFF00), (0xFF00, 0xFFF0), (0x10000, 0x10100),
    (0x10330, 0x10350), (0x10400, 0x10450), (0x10900, 0x10920), (0x11000, 0x11080), (0x12000, 0x12400),
    (0x13000, 0x13430), (0x16800, 0x16A40), (0x1B000, 0x1B100), (0x1D100, 0x1D200), (0x1D400, 0x1D800),
    (0x1E900, 0x1E960), (0x1F000, 0x1F030), (0x1F100, 0x1F200), (0x1F300, 0x1F600), (0x1F600, 0x1F650),
    (0x1F680, 0x1F700), (0x1F900, 0x1FA00), (0x20000, 0x2A6D0), (0xE0020, 0xE0080),
]


def assigned(block):
    return [chr(c) for c in range(*block) if unicodedata.category(chr(c)) != "Cn"]


for block in BLOCKS:
    characters = assigned(block)
    add("".join(rng.choice(characters) for _ in range(12)))
    add(" ".join("".join(rng.choice(characters) for _ in range(rng.randint(1, 5))) for _ in range(4)))
    add("x" + rng.choice(characters) + "1" + rng.choice(characters) + " " + rng.choice(characters) + "\n")
    add(rng.choice(characters) * rng.randint(2, 9))

# --- control characters and invisible ones -------------------------------------------------------------------------

for code in [*range(0x00, 0x20), *range(0x7F, 0xA1), 0xAD, 0x34F, 0x61C, 0x115F, 0x180E, *range(0x200B, 0x2010),
             *range(0x2028, 0x2030), *range(0x205F, 0x2065), 0x3000, 0x3164, 0xFE0E, 0xFE0F, 0xFEFF, 0xFFF9, 0xFFFC,
             0xFFFD, 0xFFFE, 0xFFFF, 0x1FFFE, 0xE0001, 0xF0000, 0x10FFFF]:
    c = chr(code)
    add(c, f"a{c}b {c} c{c}{c}")

# --- white space ---------------------------------------------------------------------------------------------------

for n in [*range(1, 36), 40, 47, 48, 63, 64, 65, 80, 100, 127, 128, 129, 200, 256, 300, 513]:
    add(" " * n, "a" + " " * n + "b")
for n in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64):
    add("\t" * n, "\n" * n, "x" + "\n" * n + "y", "\r\n" * n, "a" + "\t" * n + "b", " \n" * n, "\n " * n + "z")
SPACES = [" ", "  ", "\t", "\n", "\r", "\r\n", "\u00a0", "\u3000", "\u2003", "\u0085", "\u2028", "\x0b", "\x0c"]
for _ in range(120):
    add("".join(rng.choice(SPACES) for _ in range(rng.randint(2, 12))))
    add("".join(rng.choice([*SPACES, "a", "1", ".", "é", "漢"]) for _ in range(rng.randint(3, 20))))

# --- emoji ---------------------------------------------------------------------------------------------------------

add("😀", "😀😃😄😁", "👍🏽 ok", "👩‍👩‍👧‍👦", "👨🏿‍💻👩🏻‍🔬", "🏳️‍🌈🏴‍☠️", "🇩🇪🇫🇷🇯🇵🇺🇸", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "1️⃣2️⃣#️⃣*️⃣", "❤️‍🔥", "❤", "❤️", "☺︎☺️", "🫠🫡🥹",
    "hi😀there", "😀 😀  😀", "a👍b👍🏿c", "🤷🏽‍♀️🤦‍♂️", "🧑‍🤝‍🧑", "(╯°□°）╯︵ ┻━┻", "¯\\_(ツ)_/¯", "ʕ•ᴥ•ʔ", "‍", "👩‍", "‍👩", "🏽")
EMOJI = assigned((0x1F300, 0x1F650)) + assigned((0x1F900, 0x1FA00))
for _ in range(60):
    add("".join(rng.choice(EMOJI) + rng.choice(["", "", "️", "‍", "🏽", " ", "x"]) for _ in range(rng.randint(1, 8))))

# --- digits and numbers --------------------------------------------------------------------------------------------

for n in range(1, 24):
    add("".join(rng.choice("0123456789") for _ in range(n)), "x" + "9" * n, " " + "".join(rng.choice("01") for _ in range(n)) + " ")
add("3.14159", "1,234,567.89", "-42", "+1 (555) 010-9999", "1e-10", "0xDEADBEEF", "0b1010", "2026-03-01T12:34:56Z", "12:30",
    "50%", "$1,000", "€9.99", "1/2", "½ ⅓ ¾", "x²+y³=z⁴", "H₂O", "٣٫١٤", "١٢٣٤٥", "१२३४", "๑๒๓", "一二三四", "Ⅷ ⅸ", "①⑳㊿",
    "1st 2nd 3rd", "v1.2.3-rc.4+build.5", "10.0.0.1", "fe80::1", "1000000000000", "007", "1_000_000", "９８７", "𝟘𝟙𝟚")

# --- contractions, case, punctuation -------------------------------------------------------------------------------

WORDS = ["I", "you", "he", "they", "don", "can", "won", "it", "y'all", "L", "été"]
for tail in ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'T", "'RE", "'Ve", "'M", "'lL", "'D", "’s", "’t", "’ll", "'x", "'ſ", "'K", "''", "'"]:
    add(" ".join(word + tail for word in WORDS), rng.choice(WORDS) + tail + rng.choice(["", " ", "\n", "a", "1"]))
add("CamelCaseString", "snake_case_name", "SCREAMING_SNAKE", "kebab-case-x", "XMLHttpRequest", "iPhone15ProMax", "getHTTPSUrl2",
    "ǅ Ǆ ǆ", "ΣΊΣΥΦΟΣ σίσυφος ς", "straße STRASSE ẞ", "ﬁ ﬂ ﬃ", "ĲSSEL ĳ", "Æsop œuvre", "dž", "İI ıi")
for mark in "!?.,;:-_/\\|@#$%^&*()[]{}<>~`+='\"…—–„“”«»‹›¿¡·•§¶†‡©®™°±×÷≠≤∞√∑∫∂∆→←↔⇒":
    add(mark, f"a{mark}b {mark} c{mark}{mark}{mark} {mark}d", mark * rng.randint(2, 40))
for _ in range(120):
    add("".join(rng.choice("!?.,;:-_/\\|@#$%^&*()[]{}<>~`+='\" \nabcABC019") for _ in range(rng.randint(4, 30))))

# --- code, markup, data --------------------------------------------------------------------------------------------

add(
    "def f(x: int) -> int:\n    \"\"\"Doc.\"\"\"\n    return x ** 2 if x > 0 else -x\n",
    "class A(B):\n\tdef __init__(self, *args, **kwargs):\n\t\tsuper().__init__()\n",
    "fn main() {\n    let v: Vec<u32> = (0..10).map(|x| x * 2).collect();\n    println!(\"{v:?}\");\n}\n",
    "impl<'a, T: ?Sized + 'static> Foo<'a> for Box<dyn Fn(&T) -> Result<(), E>> {}",
    "#include <stdio.h>\nint main(void) { printf(\"%d\\n\", 1 << 3); return 0; }",
    "template <typename T> auto f(T&& t) -> decltype(std::forward<T>(t)) { return t; }",
    "const f = async (a, {b = 1, ...c}) => await Promise.all(a?.map(x => x ?? b));",
    "interface Props<T extends object = {}> { readonly id?: keyof T; }",
    "SELECT a.*, COUNT(*) AS n FROM t a LEFT JOIN u ON a.id = u.id WHERE x LIKE '%y%' GROUP BY 1;",
    "#!/usr/bin/env bash\nset -euo pipefail\nfor f in *.txt; do echo \"$f\" | sed 's/a/b/g' >> \"${out:-/dev/null}\"; done",
    "public static void main(String[] args) throws Exception { System.out.println(\"hi\"); }",
    "package main\n\nimport \"fmt\"\n\nfunc main() {\n\tfmt.Println(\"hi\")\n}\n",
    "main :: IO ()\nmain = mapM_ (putStrLn . show) $ filter even [1..10]",
    "(defun fact (n) (if (<= n 1) 1 (* n (fact (- n 1)))))",
    "<!DOCTYPE html>\n<html><head><title>x</title></head><body class=\"a b\"><p>Hi<br/>&nbsp;&amp;</p></body></html>",
    "<table><tr><td>1</td></tr></table><s>old</s><strong>b</strong><code>c</code>",
    "{\"a\": [1, 2.5, null, true], \"b\": {\"c\": \"d\\n\\u00e9\"}}", "[1,2,3]\n", "---\nkey: value\nlist:\n  - a\n  - b: c\n",
    "[section]\nkey = \"value\" # comment\n", "a,b,c\n1,\"x, y\",3\n", "# Title\n\n- item *one*\n- item **two** `code`\n\n```python\nprint(1)\n```\n",
    "$\\frac{a}{b} = \\sum_{i=0}^{n} x_i^2 \\cdot \\mathbb{R}$", "\\begin{align*}\nE &= mc^2 \\\\\n\\end{align*}",
    "https://example.com/a/b?c=d&e=%20f#g", "user.name+tag@example.co.uk", "C:\\Users\\x\\file.txt", "/usr/local/bin/../lib",
    "aGVsbG8gd29ybGQ=", "d41d8cd98f00b204e9800998ecf8427e", "550e8400-e29b-41d4-a716-446655440000", "data:image/png;base64,iVBORw0KGgo=",
    "if(x){y=z;}else{w++;}//c\n/* d */", "a&&b||!c^d~e", "x=>x", "i++ + ++j", "a[0][1]->b.c::d", "@decorator\n", "\\n\\t\\\\", "%s %d %5.2f %%",
    "    four\n        eight\n            twelve\n                sixteen\n", "\tif x:\n\t\ty\n\t\t\tz\n", "a\n\n\n\nb\n \n  \n   \nc", "x = 1  # two spaces\n\n\ny = 2\n",
)

# --- special tokens as text ----------------------------------------------------------------------------------------

SPECIAL = [
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "<|eom_id|>", "<|python_tag|>", "<bos>", "<eos>", "<pad>", "<unk>", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>",
    "<start_of_image>", "<unused0>", "<unused99>", "<mask>", "[multimodal]", "<think>", "</think>", "<tool_call>", "</tool_call>",
    "<|vision_start|>", "<|fim_prefix|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>", "<|constrain|>",
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>", "<｜fim▁hole｜>",
    "<|reserved_special_token_0|>", "<|reserved_200000|>", "<|endofprompt|>", "<repo_name>", "<file_sep>", "<jupyter_start>", "<0x0A>", "<0xFF>",
    "▁", "▁▁", "Ġ", "Ċ",
]
for token in SPECIAL:
    add(token, f"a {token} b", f"{token}{token}", token[:-1], f" {token}\n", f"x{token.lower()}y{token.upper()}")
add("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>", "<|im_start|im_end|>", "<|im_<|im_end|>start|>",
    "<｜User｜>Hi<｜Assistant｜><think>\n\n</think>\n\nok", "<<bos>>", "<|start|>assistant<|channel|>final<|message|>x<|return|>",
    "a▁b", "▁a ▁b", " ▁ ", "Ġhello", "\u0120", "<0x41>", "## heading", "@@x")

# --- random text ---------------------------------------------------------------------------------------------------

EVERYTHING = [c for block in BLOCKS for c in rng.sample(assigned(block), min(20, len(assigned(block))))]
LATIN = "etaoinshrdlucmfwypvbgkjqxz"
for _ in range(150):
    add("".join(rng.choice(EVERYTHING) for _ in range(rng.randint(1, 16))))
for _ in range(120):
    add(" ".join("".join(rng.choice(LATIN) for _ in range(rng.randint(1, 12))) for _ in range(rng.randint(1, 8))))
for _ in range(80):
    pieces = [rng.choice(SENTENCES)[rng.randint(0, 9) :][: rng.randint(1, 15)] for _ in range(rng.randint(2, 4))]
    add(rng.choice(["", " ", "\n", "-"]).join(pieces))

# --- long runs -----------------------------------------------------------------------------------------------------

add("", "a", "a" * 1000, "ab" * 700, "あ" * 500, "é" * 300, "\n" * 700, "=" * 900, "-" * 333, "0" * 500, "aB" * 300, "😀" * 200, "\u0301" * 100,
    "https://" + "a" * 400 + ".example", " ".join(SENTENCES[:12]), "".join(SENTENCES[48:54]) * 3, "क्षि" * 150, "x " * 400, "🇩" * 33, "ไ" * 200)

corpus = list(dict.fromkeys(corpus))
for string in corpus:
    string.encode()  # no lone surrogates
OUTPUT.write_text(json.dumps(corpus, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
print(len(corpus), "strings,", OUTPUT.stat().st_size, "bytes")
