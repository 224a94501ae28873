"""The words that chats are made of, each pool in two parts: for training, and held out.

Training chats draw from the `train` parts alone, and the held-out ones from the `test` parts, so a
right answer there is not a remembered one. The shipped model was trained on exactly these words: a
changed one makes its published figures those of another model.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pool:
    """Words of one kind: those of training and those held out."""

    train: list[str]
    test: list[str]


CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"

NAMES = Pool(
    train="""
        Anna Ben Clara David Emma Frank Grace Henry Iris Jack Kate Leo Mia Noah Olga Paul Rosa Sam
        Tina Victor Wendy Peter Laura Simon Julia Marco Nina Oscar Eva Tom Lisa Max Alice Bob
        Maria John Sarah Mark Linda James
    """.split(),
    test="""
        Hugo Vera Carlos Diana Felix Hannah Ivan Karin Robert Yuki
    """.split(),
)

CITIES = Pool(
    train="""
        Paris London Berlin Madrid Rome Vienna Prague Dublin Tokyo Seoul Cairo Delhi Moscow Boston
        Chicago Denver Seattle Toronto Sydney Mumbai Athens Warsaw Zurich Milan Munich Hamburg
        Beijing Shanghai Bangkok Istanbul Amsterdam Brussels Geneva Naples Dallas Miami
    """.split(),
    test="""
        Oslo Lima Quito Lisbon Helsinki Nairobi Hanoi Porto Austin Budapest
    """.split(),
)

THINGS = Pool(
    train="""
        red blue green black white yellow pink brown apple pear plum grape lemon melon cherry
        bread milk rice cheese butter cat dog horse cow pig sheep goat mouse duck bird fish bear
        wolf fox lion tiger table chair lamp door window house garden river forest mountain ocean
        stone sand iron gold silver paper pen book map box bag cup plate spoon knife fork ball
        kite drum flute piano car bus train boat bike plane road bridge tower castle king queen
        farmer baker doctor sun moon star rain snow wind cloud storm winter summer spring music
        dance game team tree leaf flower root seed
    """.split(),
    test="""
        orange purple peach onion rabbit eagle shark desk candle valley copper basket violin truck
        temple sailor thunder autumn puzzle grass
    """.split(),
)

TOOL_NOUNS = Pool(
    train="""
        weather flight hotel email reminder ticket room table order invoice package taxi recipe
        song movie meeting event task note file report user account price stock payment message
        alarm timer light door camera photo video playlist contact letter train bus car course
        lesson exam score budget loan policy claim visit patient doctor sensor device server job
        backup log query record product cart coupon review
    """.split(),
    test="""
        parcel concert museum contract engine garden ferry wallet printer rocket tournament
        library battery license poster
    """.split(),
)

VERBS = """
    get find book send create set search check list update cancel order track open close start
    stop add remove show read write play move count save load share print sell
""".split()

RARE_VERBS = Pool(
    train="""
        fetch lookup query make build buy rent call run test plan pay sign scan copy move pause
        resume enable disable
    """.split(),
    test="""
        reserve launch archive verify assign export
    """.split(),
)

PREFIXES = Pool(
    train="""
        start end max min user home new old first total daily main
    """.split(),
    test="""
        final base local extra
    """.split(),
)

# Parameter names of tools by JSON type.
PARAMETERS = {
    "string": Pool(
        train="""
            city name title color owner topic place label category language status mode format
            street brand author subject theme team group
        """.split(),
        test="""
            country material genre vendor region style
        """.split(),
    ),
    "integer": Pool(
        train="""
            count days year amount age level size limit page hour minutes seats nights floor
            number
        """.split(),
        test="""
            quantity rank width copies rooms
        """.split(),
    ),
    "number": Pool(
        train="""
            price weight distance rate height speed score cost
        """.split(),
        test="""
            volume depth discount
        """.split(),
    ),
    "boolean": Pool(
        train="""
            urgent public active express secure hidden daily confirmed
        """.split(),
        test="""
            private remote verified
        """.split(),
    ),
    "array": Pool(
        train="""
            tags items colors names words guests
        """.split(),
        test="""
            labels members parts
        """.split(),
    ),
}

# Pieces of invented words, taken from the tokenizer's vocabulary: to copy a word is to copy its
# tokens, and that has to work for every token, not only for those of consonant-vowel syllables.
PIECES = """
    a ab abe abel able ac ace ach acher ack act ad add af ag age ags ai ail aily ak ake al all
    alse am ame amera ames ami an ance ancel and ane angu ank ano ant ap ar ara arch are arg arget
    arm armer array arri art as ase ask ast at ate ati ation ats atur atus av ave avi avor ax axi
    ay az b bi bl bo book boole brand c car ce ch che city ck cker cket close co color core cost
    count cri ct ction ctor cul cure cy d daily date day days dd de ded den deo der des do done ds
    du duct e ea ear ect ed eded ef eight el em en ent enum ep er era ere ery es ese ess esson est
    ests et etin eting etter ez f fa false fast find floor fo for ful fun g ga ge ger get gh gor
    group gu h hare he ho hone hoto hour how i ia ib ic ice ich id idden if ife ig igh ight ights
    igin ik il ile iled im in ina ind ine ing ins inte ip ipe ir ird ired irmed is isa ish isit
    ist it ite item items ity iz ize izza j ject job k ke kes ket key ks l la label laim larm le
    lease level light lim limit lin list ll lo loor lose low lp ls m ma mail mall mat mb mber me
    med ment mer mind mo mode mon move n na name names natur nd nding ned ner now ns nswer nt o ob
    obbi od of og ok oke ol old ole olic olicy olor ols olume om ome on one onf onfig ong ont
    onver ook op open ople opul or ord order ords ore orse ort os ot ote otel ou ount oup oupon
    our ource ourse ouse out ow owner oz p page par pe peat peed pell pen per pet phone ping pings
    pl place play ples port press price print pro ption pu publ pul put pute q qu r ra rack rain
    rand rate ray re read reak reate red reet ren requ ress ri rice rin ring rint rite ro room
    roup rue ry s save score se seats sell send set share sist size speed st stop t tags tal te
    team ter text th the theme ther ti tic ties tin tion title tive tle to tock tools top topic
    track true ts tur ty type u ub uck ud udget ue uf ug uk ul um umber ume umen un und unit unt
    up ur ura ure urg uri urren us user ut ute utes uth uthor uz v va val ve vel vent ver verse
    ves vi vice vided video vie view vo voice vu w way wer wn wner words write x xt y ye year ymb
    ymbol ys z za
""".split()
