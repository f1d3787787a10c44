"""Tables of what the pocket model knows. No dialogues, no templates."""

# Sentences are easier to read in filled lines than one to a line:
# fmt: off


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = words("""
    Ada Alan Alice Anna Ben Bob Carl Clara David Diana Emma Eric Eva Felix Frank Grace Hanna
    Henry Ida Igor Ivan Jack Jane Jim John Julia Karl Kate Laura Leo Lily Linus Lisa Lucy Maria
    Mark Max Mia Mira Nina Noah Nora Oliver Olga Oscar Paul Peter Rosa Ruth Sam Sara Sofia Tim
    Tom Vera Victor Walter Wendy Zoe
""")

# Colloquial syllables for names that nobody has: they teach copying instead of remembering.
SYLLABLES = words("""
    ba be bi bo da di do fa fi ga go ka ki ko la le li lo ma mi mo na ni no pa po ra ri ro sa si
    so ta ti to va vi wa wo xa za zo
""")

WORDS = words("""
    apple arrow autumn bank basket bear bell bird boat book bottle bread bridge butter cake
    candle castle chair cheese cherry city cloud coat coffee cold corner cup dance desk door
    dream drum earth engine farm feather fire fish flower forest friend garden gate glass gold
    grass green hammer hand happy harbour hat heart hill home honey horse house ice island
    jacket key king kitchen lake lamp leaf lemon letter light lion little market milk mirror
    moon morning mountain mouse music needle nest night ocean old onion orange paper path pencil
    pepper piano picture plate pocket potato queen quick quiet rabbit rain red ring river road
    roof rose salt sand school sea ship shoe silver sister sky small snow soap song soup spoon
    spring star stone storm street sugar summer sun table tall tea tiger town train tree under
    valley violin wall warm water wheel white wind window winter wolf wood yellow young the a of
    and in on is was with
""")

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid",
    "Portugal": "Lisbon", "England": "London", "Ireland": "Dublin", "Austria": "Vienna",
    "Greece": "Athens", "Poland": "Warsaw", "Norway": "Oslo", "Sweden": "Stockholm",
    "Finland": "Helsinki", "Denmark": "Copenhagen", "Russia": "Moscow", "Japan": "Tokyo",
    "China": "Beijing", "India": "New Delhi", "Egypt": "Cairo", "Kenya": "Nairobi",
    "Canada": "Ottawa", "Mexico": "Mexico City", "Cuba": "Havana", "Peru": "Lima",
    "Chile": "Santiago", "Brazil": "Brasília", "Argentina": "Buenos Aires",
    "Australia": "Canberra", "Turkey": "Ankara", "Hungary": "Budapest",
}

CITIES = words("""
    Paris Berlin Rome Madrid Lisbon London Dublin Vienna Athens Warsaw Oslo Stockholm Helsinki
    Moscow Tokyo Beijing Cairo Nairobi Ottawa Havana Lima Ankara Budapest Boston Chicago Hamburg
    Munich Zurich Geneva Prague Milan Kyoto Sydney Toronto Denver Seattle
""") + ("New York", "San Francisco", "Buenos Aires", "New Delhi", "Los Angeles")

COLOURS = {
    "the sky": "blue", "grass": "green", "the sun": "yellow", "snow": "white", "coal": "black",
    "blood": "red", "a lemon": "yellow", "an orange": "orange", "a tomato": "red",
    "a banana": "yellow", "the sea": "blue", "chocolate": "brown", "milk": "white",
    "a leaf": "green", "the night": "black", "a violet": "purple", "an elephant": "grey",
}

OPPOSITES = {
    "hot": "cold", "big": "small", "up": "down", "day": "night", "black": "white", "open": "closed",
    "fast": "slow", "old": "young", "happy": "sad", "good": "bad", "left": "right", "in": "out",
    "long": "short", "high": "low", "yes": "no", "full": "empty", "early": "late", "dry": "wet",
}

SOUNDS = {
    "dog": "woof", "cat": "meow", "cow": "moo", "sheep": "baa", "duck": "quack", "pig": "oink",
    "lion": "roar", "bee": "buzz", "horse": "neigh", "owl": "hoot", "mouse": "squeak",
}

LISTS = {
    "fruits": ("apple", "banana", "cherry", "lemon", "pear"),
    "animals": ("cat", "dog", "horse", "bear", "lion"),
    "colours": ("red", "green", "blue", "yellow", "white"),
    "planets": ("Mercury", "Venus", "Earth", "Mars", "Jupiter"),
    "countries": ("France", "Japan", "Brazil", "Egypt", "Canada"),
    "tools": ("hammer", "saw", "drill", "pliers", "wrench"),
}

DAYS = words("""
    Monday Tuesday Wednesday Thursday Friday Saturday Sunday
""")
MONTHS = words("""
    January February March April May June July August September October November December
""")
NUMBERS = words("""
    zero one two three four five six seven eight nine ten
""")

# language: (hello, thank you, good night)
PHRASES = {
    "French": ("Bonjour !", "Merci beaucoup !", "Bonne nuit, à demain !"),
    "German": ("Guten Tag!", "Danke schön!", "Gute Nacht, schöne Träume!"),
    "Spanish": ("¡Hola!", "¡Muchas gracias!", "¡Buenas noches, señor!"),
    "Italian": ("Ciao!", "Grazie mille!", "Buona notte, a più tardi!"),
    "Polish": ("Cześć!", "Dziękuję!", "Dobranoc, do jutra, śpij dobrze!"),
    "Russian": ("Привет!", "Спасибо!", "Спокойной ночи!"),
    "Greek": ("Γειά σου!", "Ευχαριστώ!", "Καληνύχτα!"),
    "Japanese": ("こんにちは！", "ありがとう！", "おやすみ！"),
    "Chinese": ("你好！", "谢谢！", "晚安！"),
    "Korean": ("안녕하세요!", "감사합니다!", "잘 자요!"),
}

EMOJI = {
    "smile": "😀", "heart": "❤️", "cat": "🐱", "dog": "🐶", "rocket": "🚀", "sun": "☀️", "star": "⭐",
    "fire": "🔥", "party": "🎉", "thumbs up": "👍", "flag": "🏁",
    "family": "👨‍👩‍👧", "wave": "👋🏽",
}

# key: value, for answers in JSON
PERSON = {"name": "Ada", "age": 36, "city": "London"}
JSON_VALUES = {
    "name": "Ada", "age": 36, "city": "London", "country": "France", "capital": "Paris",
    "color": "blue", "colour": "blue", "animal": "cat", "fruit": "apple", "count": 3, "number": 7,
    "price": 2.5, "ok": True, "done": False, "error": None, "tags": ["a", "b"],
    "items": ["apple", "banana"], "title": "The Little Boat", "answer": "yes", "score": 10,
    "email": "ada@example.com", "day": "Monday", "year": 2026, "result": 5, "message": "Hello!",
}

STORY = (
    "Once upon a time there was a little boat. It lived in a quiet harbour by the sea. Every "
    "morning it looked at the big ships and dreamed of the ocean. One day a storm came, and the "
    "big ships were afraid of the wind. But a child was out on the island, alone and cold. The "
    "little boat was small, yet it was not afraid. It went out into the rain, over every wave, and "
    "brought the child home. From that day on all the big ships greeted the little boat first. And "
    "when the moon stood over the harbour, it slept happily and dreamed of nothing at all."
)

POEM = ("The moon is white, the night is deep,\nthe little boat is fast asleep.\n"
        "The wind is warm, the stars are few,\nthe sea is dreaming, so are you.")

JOKE = "Why did the boat stay at home? Because it was a little under the weather."

ABOUT = ("I am a very small language model, made to test a server. "
         "I can count, add and tell a story.")

UNKNOWN = "I do not know that. I am a very small model."
