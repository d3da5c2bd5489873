"""The token ids that CLIP's tokenizers give texts of many kinds.

    python tests/reference/clip_tokens.py

Made with transformers 5.23.0 and open_clip_torch 3.3.0, which holds OpenAI's vocabulary. Every text has the ids of
transformers' CLIPTokenizer; all but those of REPAIRED, which OpenAI's code changes before it looks for tokens, have those
of open_clip as well.
"""

import gzip
import json
from pathlib import Path

import open_clip
from open_clip.tokenizer import SimpleTokenizer, bytes_to_unicode, default_bpe
from transformers import CLIPTokenizer

FILE = Path(__file__).resolve().parent.parent / "golden" / "text" / "clip_tokens.json"

PLAIN = [
    "",
    " ",
    "\t\n  \r\n",
    "a",
    "a photo of a cat.",
    "A Photo of a CAT",
    "a photo of a T-shirt/top.",
    "an ankle boot, worn",
    "  leading and   inner\tspaces \n and lines  ",
    "it's, they're, I've, I'm, you'll, he'd, don't",
    "IT'S THEY'RE DON'T",
    "rock'n'roll 'twas the '90s",
    "o'clock's",
    "'s",
    "''s",
    "!'s",
    "1234567890",
    "iPhone 12 Pro, 256GB for $1,099.00",
    "3.14159 and 1e-6 and 0xFF",
    "half ½, three quarters ¾, squared ², Roman Ⅷ, circled ①",
    "١٢٣ ४५६ 七八九",
    "hello!!! really??? yes...",
    "(brackets) [square] {curly} <angle>",
    "a_b-c+d=e*f/g\\h|i~j`k^l",
    "#hashtag @mention 50% & more",
    "https://example.com/a?b=c&d=e#f",
    "someone@example.org",
    "\"quoted\" and 'single'",
    "naïve café résumé Zürich Ærø Łódź",
    "nai\u0308ve cafe\u0301 in parts",
    "Straße STRASSE ẞ",
    "İstanbul ISPARTA ısı",
    "Привет, мир! Кошка на крыше",
    "שלום עולם",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "一只猫坐在垫子上。",
    "안녕하세요 세계",
    "tiếng Việt có dấu",
    "😀",
    "a dog 🐶 and a cat 🐱!",
    "👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇫🇷",
    "❤️ ♥ ★ ☆ ✓",
    "→ ← ∞ ≠ ≤ ∑ √",
    "€ £ ¥ ¢ ©® ™",
    "x\u200dy",
    "soft\u00adhyphen",
    "no\u00a0break and thin\u2009space",
    "ideographic\u3000space",
    "\u202eright to left",
    "combining \u0301 alone",
    "a\u0300\u0301\u0302 three marks",
    "private \ue000 use",
    "antidisestablishmentarianism",
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    "supercalifragilisticexpialidocious",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "qzxjkvbwpy",
    "llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogoch",
    "jekyll and hyde",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z",
    "a photo of the large golden retriever dog, a type of pet.",
    "itap of a red panda.",
    "a bad photo of the hard to see school bus.",
    "a photo of one ",
    "graffiti of a tench",
    "the origami lionfish.",
    "a black and white photo of a Pullover.",
    "satellite image of annual crop land",
    "a centered satellite photo of highway or road.",
    "the number: \"7\".",
    "a street sign of the number: \"42\".",
    "a cropped photo of a(n) apple",
    "two    cats;  three:dogs",
    "e.g. i.e. etc. U.S.A. Ph.D.",
    "C++ and C# and F#",
    "GPT-4, ViT-B/32, ResNet-50x64",
    "10:30am on 2021-01-05",
    "1/2 cup (120 ml) of milk @ 37°C",
    "5'11\" tall",
    "UPPER lower MiXeD",
    "mcdonald's vs. macy's",
    "word" + " word" * 74,
    "word" + " word" * 75,
    "word" + " word" * 76,
    "the quick brown fox jumps over the lazy dog " * 20,
    "😀" * 40,
    "antidisestablishmentarianism " * 30,
    "." * 500,
]
# By ftfy: forms of full and half width, curly quotes, ligatures, control characters, broken encodings; by html.unescape:
# entities; by Python's lower(): the sigma at the end of a word.
REPAIRED = [
    "salt &amp; pepper",
    "&lt;b&gt;bold&lt;/b&gt; &quot;quote&quot; &#39;apostrophe&#39;",
    "&nbsp;&eacute;&#x1F600;",
    "broken cafÃ© encoding",
    "ﬁne ﬂow",
    "Ｆｕｌｌ ｗｉｄｔｈ",
    "ΑΣ ὈΔΥΣΣΕΎΣ Σίσυφος",
    "你好，世界",
    "こんにちは世界 カタカナ ﾊﾝｶｸ",
    "nul \x00 and bell \x07",
    "l'été, l’été",
    "“curly” ‘quotes’ – en — em … dots",
]


def main() -> None:
    merges = gzip.open(default_bpe()).read().decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = list(bytes_to_unicode().values())
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(merge.split()) for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    assert len(vocab) == 49408
    theirs = CLIPTokenizer(vocab=vocab, merges=[tuple(merge.split()) for merge in merges])
    official = SimpleTokenizer()
    cases = []
    for text in PLAIN + REPAIRED:
        ids = theirs(text, truncation=True, max_length=77)["input_ids"]
        padded = ids + [0] * (77 - len(ids))
        same = official([text])[0].tolist() == padded
        assert same or text in REPAIRED, f"open_clip differs: {text!r}"
        cases.append({"text": text, "ids": ids, "open_clip_agrees": same})
    FILE.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(case) for case in cases)
    FILE.write_text(f"[\n{lines}\n]\n")
    print(len(cases), "texts,", sum(case["open_clip_agrees"] for case in cases), "as in open_clip", open_clip.__version__)


if __name__ == "__main__":
    main()
