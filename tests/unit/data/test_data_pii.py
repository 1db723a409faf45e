"""Personal data: what is masked, and what only looks like it."""

from __future__ import annotations

import pytest

from tsugiki.data.formatters.pii import is_my_number, is_resident_identity, is_thai_identity, mask_text

KINDS = ("email", "ip", "phone", "national_id")


@pytest.mark.parametrize(
    ("language", "before", "after"),
    [
        ("en", "Mail Foo.Bar+x@mail.co.uk now", "Mail email@example.com now"),
        ("en", "from 8.8.8.8 and 2606:4700:4700::1111", "from 192.0.2.1 and 2001:db8::1"),
        ("en", "call (415) 555-2671 or 415-555-2671", "call (000) 000-0000 or 000-000-0000"),
        ("en", "+44 20 7946 0958", "+00 00 0000 0000"),
        ("en", "SSN 123-45-6789", "SSN 000-00-0000"),
        ("ja", "電話03-1234-5678です。携帯は090-1234-5678", "電話00-0000-0000です。携帯は000-0000-0000"),
        ("ja", "番号は123456789018です", "番号は000000000000です"),
        ("zh", "身份证11010519491231002X，手机13812345678", "身份证00000000000000000X，手机00000000000"),
        ("th", "บัตร 1-1017-00207-03-0 โทร 02-123-4567", "บัตร 0-0000-00000-00-0 โทร 00-000-0000"),
        ("id", "HP 0812-3456-7890", "HP 0000-0000-0000"),
        ("id", "NIK 3171234507900001", "NIK 0000000000000000"),
        ("ms", "MyKad 880101-14-5678", "MyKad 000000-00-0000"),
        ("vi", "CCCD 001099012345, ĐT 0912 345 678", "CCCD 000000000000, ĐT 0000 000 000"),
        ("my", "၁၂/မဂတ(နိုင်)၁၂၃၄၅၆", "00/မဂတ(နိုင်)000000"),
        ("tl", "0917 123 4567", "0000 000 0000"),
        ("km", "ទូរស័ព្ទ 012 345 678", "ទូរស័ព្ទ 000 000 000"),
        ("lo", "ໂທ 020 5555 1234", "ໂທ 000 0000 0000"),
        ("ja", "電話０３－１２３４－５６７８です", "電話00－0000－0000です"),
        (
            "ja",
            "電話（03）1234-5678、番号は１２３４５６７８９０１８",
            "電話（00）0000-0000、番号は000000000000",
        ),
        ("my", "ဖုန်း ၀၉ ၁၂၃ ၄၅၆ ၇၈၉", "ဖုန်း 00 000 000 000"),
        ("th", "โทร 02 123 4567 หรือ ๐๘๑-๒๓๔-๕๖๗๘", "โทร 00 000 0000 หรือ 000-000-0000"),
        ("km", "ទូរស័ព្ទ ០១២ ៣៤៥ ៦៧៨", "ទូរស័ព្ទ 000 000 000"),
        ("vi", "ĐT 028 3822 1234, 0236 3822 123", "ĐT 000 0000 0000, 0000 0000 000"),
        (
            "en",
            "Call us at 555 123 4567. Phone: 555-123-4567",
            "Call us at 000 000 0000. Phone: 000-000-0000",
        ),
        ("zh-Hant", "手機0912-345-678，電話02-2345-6789", "手機0000-000-000，電話00-0000-0000"),
    ],
)
def test_masked(language: str, before: str, after: str) -> None:
    text, counts = mask_text(before, language, KINDS)  # type: ignore[arg-type]
    assert text == after
    assert sum(counts.values()) >= 1


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "192.168.0.1 and 127.0.0.1 are private"),
        ("en", "On 2024-01-15 at 10:30:00 version 3.11 cost 1,234,567"),
        ("en", "SSN 000-12-3456 and 666-12-3456 do not exist"),
        ("en", "already email@example.com"),
        ("en", "of 200 300 4000 and 555 123 4567 pages we call none a number"),
        ("th", "ปี ๒๕๖๗ ราคา 1 250 000 บาท"),
        ("zh-Hant", "09-12 到 09-15，共 0912 人"),
        ("ja", "（１）２０２４年１月１５日"),
        ("ja", "123456789012は検査数字が違う"),
        ("ja", "2024-01-15に発売、型番 A03-1234-5678"),
        ("zh", "110105194912310021 校验位错误"),
        ("th", "1101700207031"),
        ("id", "3171239912900001"),
        ("ms", "881301-14-5678"),
        ("en", "std::vector<int>::iterator and C++"),
    ],
)
def test_left_alone(language: str, text: str) -> None:
    assert mask_text(text, language, KINDS) == (text, {})  # type: ignore[arg-type]


def test_each_number_is_counted_once() -> None:
    text = "+1 (555) 123-4567 and (415) 555-2671, mail a@b.co"
    masked, counts = mask_text(text, "en", KINDS)  # type: ignore[arg-type]
    assert masked == "+0 (000) 000-0000 and (000) 000-0000, mail email@example.com"
    assert counts == {"phone": 2, "email": 1}
    assert mask_text(masked, "en", KINDS) == (masked, {})  # type: ignore[arg-type]


def test_kinds_are_chosen() -> None:
    text, counts = mask_text("a@b.co 8.8.8.8", "en", ("ip",))
    assert (text, counts) == ("a@b.co 192.0.2.1", {"ip": 1})


def test_check_digits_by_hand() -> None:
    # My Number 12345678901?: digits from the right 1 0 9 8 7 6 | 5 4 3 2 1, weights 2..7 | 2..6:
    # 2+0+36+40+42+42 + 10+12+12+10+6 = 212; 212 mod 11 = 3; 11 - 3 = 8.
    assert is_my_number("123456789018") and not is_my_number("123456789017")
    # The example of GB 11643-1999.
    assert is_resident_identity("11010519491231002X") and not is_resident_identity("110105194912310021")
    # 1 1 0 1 7 0 0 2 0 7 0 3, weights 13..2: 13+12+0+10+63+0+0+12+0+28+0+6 = 144; 144 mod 11 = 1;
    # (11 - 1) mod 10 = 0.
    assert is_thai_identity("1101700207030") and not is_thai_identity("1101700207031")
