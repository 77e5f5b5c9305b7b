"""The 80 COCO categories and the everyday words that name them: this project's own table.

Words are singular and lower case; a two-word entry is matched as a phrase. A word belongs to one
category and is left out where it usually means something else ("glass", "light", "plant",
"screen").
"""

_TABLE = """
person: man woman boy girl child kid baby toddler infant teenager teen adult guy gentleman lady
    male female mother father mom dad parent son daughter brother sister husband wife bride groom
    friend worker chef waiter waitress baker vendor cashier player batter pitcher
    catcher umpire referee goalie athlete skier snowboarder skateboarder skater surfer swimmer
    rider biker cyclist bicyclist motorcyclist jockey pedestrian passenger traveler tourist
    driver pilot conductor cop policeman policewoman officer fireman firefighter soldier
    sailor doctor nurse patient dentist student teacher cowboy farmer fisherman hiker camper
    shopper customer spectator onlooker bystander businessman businesswoman musician performer
    villager hunter walker jogger coworker grandmother grandfather grandchild
bicycle: bike unicycle tricycle trike
car: automobile sedan hatchback minivan van suv jeep coupe convertible taxi taxicab cab limousine
    limo
motorcycle: motorbike moped scooter minibike | motor bike | motor cycle
airplane: plane aeroplane aircraft jet jetliner airliner airbus biplane seaplane | air plane
bus: minibus trolley omnibus | double decker
train: locomotive caboose tramway tram
truck: pickup lorry firetruck hauler | fire truck
boat: ship sailboat rowboat motorboat speedboat houseboat lifeboat tugboat canoe kayak yacht ferry
    dinghy catamaran barge raft gondola vessel freighter schooner watercraft ferryboat steamboat
traffic light: stoplight streetlight | traffic signal | stop light | street light
fire hydrant: hydrant
stop sign:
parking meter:
bench: pew
bird: seagull gull pigeon dove duck duckling goose gosling swan hen rooster peacock
    pheasant owl hawk eagle falcon vulture osprey parrot parakeet macaw cockatoo cockatiel sparrow
    robin finch crow raven magpie heron egret pelican flamingo ostrich penguin hummingbird
    woodpecker kingfisher seabird songbird waterfowl mallard bluebird blackbird loon cormorant
    warbler
cat: kitten kitty feline tabby
dog: puppy pup doggy doggie canine hound mutt poodle terrier retriever labrador bulldog beagle
    chihuahua dachshund collie corgi husky pug spaniel sheepdog greyhound rottweiler dalmatian
    pitbull
horse: pony colt foal mare stallion mustang racehorse
sheep: lamb ewe ram goat
cow: cattle calf bull ox heifer buffalo bison
elephant:
bear: panda | polar bear | grizzly bear
zebra:
giraffe:
backpack: knapsack rucksack
umbrella: parasol
handbag: purse wallet briefcase
tie: necktie bow | bow tie
suitcase: luggage | suit case
frisbee:
skis: ski
snowboard:
sports ball: ball | tennis ball | soccer ball
kite:
baseball bat:
baseball glove:
skateboard: longboard
surfboard: shortboard bodyboard wakeboard
tennis racket: racket racquet | tennis racquet
bottle:
wine glass: wineglass
cup: mug teacup
fork:
knife: pocketknife
spoon: teaspoon tablespoon
bowl: container
banana:
apple:
sandwich: burger hamburger cheeseburger sub panini
orange:
broccoli:
carrot:
hot dog: hotdog
pizza:
donut: doughnut bagel
cake: cupcake cheesecake shortcake pancake
chair: seat stool armchair barstool
couch: sofa loveseat futon recliner settee
potted plant: houseplant
bed:
dining table: table desk
toilet: urinal commode
tv: television monitor
laptop: computer notebook netbook macbook | laptop computer
mouse:
remote: | remote control
keyboard:
cell phone: phone cellphone smartphone telephone iphone | mobile phone
microwave:
oven: stove stovetop
toaster:
sink:
refrigerator: fridge freezer
book:
clock:
vase:
scissors:
teddy bear: teddybear
hair drier: hairdryer | hair dryer
toothbrush:
"""


def _parse(table: str) -> dict[str, tuple[str, ...]]:
    words: dict[str, tuple[str, ...]] = {}
    for entry in table.replace("\n ", " ").strip().splitlines():
        category, _, rest = entry.partition(":")
        singles, *phrases = rest.split("|")
        words[category] = (*singles.split(), *(phrase.strip() for phrase in phrases))
    return words


COCO_OBJECT_WORDS: dict[str, tuple[str, ...]] = _parse(_TABLE)
"""Category -> other words for it, in the order of the COCO category ids."""
