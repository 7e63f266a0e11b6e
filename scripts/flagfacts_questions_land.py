"""The FlagFacts questions about a country's land and people: the World Factbook's sections Geography, Environment, and
People and Society. ``scripts.flagfacts_questions`` says what every wording keeps to.
"""

from __future__ import annotations

# field -> its wordings as text, a block per split
WORDINGS: dict[str, dict[str, str]] = {
    "climate": {
        "train": """
            What is the climate like in this country?
            How is the weather in the nation that flies this flag?
            Describe the climate of the place this flag belongs to.
            Is it hot or cold in the country with this flag?
            What kind of weather should a visitor to this nation expect?
            When is the rainy season in this country?
            Are the winters mild or harsh in this state?
            How warm and how wet does it get here during the year?
            Which climate zones does this country fall into?
            Tell me about summers and winters in the land of this flag.
        """,
        "dev": """
            What are the typical weather conditions in this nation?
            Does the country shown have a tropical, dry or temperate climate?
        """,
        "test": """
            Which temperatures and how much rain are usual in this country?
            What sort of climate do the inhabitants under this flag live with?
            I am packing for a trip to this nation: what weather awaits me?
        """,
    },
    "environment": {
        "train": """
            What environmental issues does this country face?
            Which pollution problems exist in the nation with this flag?
            Describe the ecological problems of the place this flag belongs to.
            Is deforestation, soil erosion or dirty water a concern in this country?
            How are people damaging nature in the country that flies this flag?
            What environmental damage worries conservationists in this nation?
            List the current environmental concerns of this state.
            Are the air and the rivers polluted here?
            What harm do industry and overuse do to the environment of this country?
            Which threats to wildlife, forests and water supplies are reported for this nation?
        """,
        "dev": """
            What are the main environmental troubles of the country shown?
            Which ecological damage does this nation suffer from?
        """,
        "test": """
            What would a green activist in this country campaign against?
            In which ways is the natural environment of the land of this flag being degraded?
            Which kinds of pollution and habitat loss afflict this nation?
        """,
    },
    "ethnic": {
        "train": """
            Which ethnic groups live in this country?
            What is the ethnic composition of the nation with this flag?
            Describe the ethnic makeup of the place this flag belongs to.
            Who are the peoples living under this flag?
            What percentage of the population does each ethnicity make up in this country?
            Which ethnicity forms the majority in this state?
            Name the ethnic minorities of the country that flies this flag.
            From which ancestries do the inhabitants of this nation come?
            How ethnically diverse is this country?
            Which tribes or peoples make up the population here?
        """,
        "dev": """
            What are the largest ethnic communities of this nation?
            How is the population of the country shown divided by ethnicity?
        """,
        "test": """
            To which ethnic groups do the citizens of this country belong?
            Break down the people of the land of this flag by their ethnic origin.
            Which peoples share this nation, and in what proportions?
        """,
    },
    "geo_note": {
        "train": """
            What is geographically remarkable about this country?
            Name an unusual geographic fact about the nation with this flag.
            Does the geography of this country hold any record or curiosity?
            What makes the position of this country strategically important?
            Which geographic superlatives can the place this flag belongs to claim?
            Tell me something noteworthy about the geography of this nation.
            What special geographic feature sets the country that flies this flag apart?
            Give a geographical note on this state.
            Is there anything special about this country on the map, such as its size, straits or famous landmarks?
            Which interesting trivia is there about the geography here?
        """,
        "dev": """
            What geographic peculiarity is worth mentioning about this nation?
            What stands out about the geography of the country shown?
        """,
        "test": """
            For which geographic oddity or record is this country known?
            What would a geography quiz ask about the land of this flag?
            Mention a striking geographical fact, or the strategic significance, of this nation.
        """,
    },
    "hazards": {
        "train": """
            Which natural hazards threaten this country?
            What natural disasters happen in the nation with this flag?
            Describe the natural dangers in the place this flag belongs to.
            Are there earthquakes, floods or storms in this country?
            Which disasters should residents of the country that flies this flag prepare for?
            Is this nation hit by hurricanes, cyclones or typhoons?
            Are there active volcanoes that endanger this state?
            Do droughts, landslides or avalanches occur here?
            What forces of nature put the people of this country at risk?
            List the natural hazards of this nation.
        """,
        "dev": """
            What kinds of natural catastrophe can strike this nation?
            Which natural perils is the country shown exposed to?
        """,
        "test": """
            Against which natural calamities would one insure a house in this country?
            Which destructive natural events are common in the land of this flag?
            Does this nation have to fear quakes, eruptions, flooding or dry spells?
        """,
    },
    "languages": {
        "train": """
            Which languages are spoken in this country?
            What is the official language of the nation with this flag?
            List the languages of the place this flag belongs to.
            What do people speak in the country that flies this flag?
            Which mother tongues are common in this nation?
            What share of the population speaks each language in this state?
            In which language should I greet someone from here?
            Which tongues and dialects can be heard in this country?
            Is there more than one official language in this nation?
            Which language would I need to learn to live under this flag?
        """,
        "dev": """
            What languages do the inhabitants of this nation use?
            Which language is most widely spoken in the country shown?
        """,
        "test": """
            In what tongue do the citizens of this country talk to each other?
            For a trip to the land of this flag, which phrasebook should I buy?
            Name the official and the minority languages of this nation.
        """,
    },
    "location": {
        "train": """
            Where is this country located?
            In which part of the world is the nation with this flag?
            Give the geographic location of the place this flag belongs to.
            Which countries and seas border the country that flies this flag?
            On which continent does this nation lie?
            Between which neighbors is this state situated?
            Where on a world map would I find this country?
            Next to which ocean, sea or countries is this nation?
            In what region of the globe is this land?
            Whereabouts is the country with this flag?
        """,
        "dev": """
            Where in the world does this nation lie?
            What is the location of the country shown?
        """,
        "test": """
            Where would a plane have to fly to reach this country: which region, next to which neighbors?
            Which continent and which surrounding waters or states belong to the position of the land of this flag?
            Tell me where this nation can be found on the globe.
        """,
    },
    "pop_distribution": {
        "train": """
            Where in this country do most people live?
            How is the population spread over the nation with this flag?
            Which areas of the place this flag belongs to are densely populated?
            Describe the population distribution of this country.
            Do the inhabitants of the country that flies this flag cluster on the coast or inland?
            Which regions of this nation are sparsely inhabited?
            In which parts of this state is the population density highest?
            Are people here concentrated around a few cities or evenly spread?
            Where are the population centers of this country found?
            Which parts of this nation are crowded and which are nearly empty?
        """,
        "dev": """
            How are the people of this nation distributed across its territory?
            Where are the most settled areas of the country shown?
        """,
        "test": """
            In which corners of this country does the bulk of the population reside?
            On a night photo of the land of this flag, where would settlements be thickest?
            Is this nation evenly settled, or do residents crowd into certain areas?
        """,
    },
    "religions": {
        "train": """
            Which religions are practiced in this country?
            What is the main faith in the nation with this flag?
            Describe the religious composition of the place this flag belongs to.
            What do people believe in the country that flies this flag?
            Which churches or religious communities are found in this nation?
            What share of this country's people is Christian, Muslim, Hindu or Buddhist?
            Is there a state religion in this country?
            To which religion do most inhabitants of this state belong?
            How many people here are without a religion?
            List the religious groups of this nation by size.
        """,
        "dev": """
            What are the religious affiliations of this nation's population?
            Which religion is most common in the country shown?
        """,
        "test": """
            Which faiths do the citizens of this country follow?
            Would I find mostly churches, mosques or temples in the land of this flag?
            How do believers of different religions divide up in this nation?
        """,
    },
    "resources": {
        "train": """
            Which natural resources does this country have?
            What minerals are found in the nation with this flag?
            List the natural resources of the place this flag belongs to.
            What can be mined or extracted in the country that flies this flag?
            Which raw materials is this nation endowed with?
            Are there oil, gas, coal or metal deposits in this country?
            What natural wealth lies in the ground and waters of this state?
            Which ores and fuels occur here?
            Does this nation own timber, fish, arable land or hydropower as natural assets?
            Name the natural riches of this country.
        """,
        "dev": """
            What natural resources is this nation blessed with?
            Which mineral deposits exist in the country shown?
        """,
        "test": """
            What could a mining company hope to dig up in this country?
            Which treasures of nature, from ores to forests, does the land of this flag possess?
            What resources does nature offer this nation?
        """,
    },
    "terrain": {
        "train": """
            What is the terrain of this country?
            What does the landscape look like in the nation with this flag?
            Describe the relief of the place this flag belongs to.
            Is the country that flies this flag flat or mountainous?
            Which landforms dominate this nation?
            Are there plains, hills, deserts or plateaus in this state?
            What kind of ground would a hiker cross in this country?
            How rugged is the land surface here?
            Does this nation consist of mountains, lowlands or coral islands?
            Tell me about the topography of this country.
        """,
        "dev": """
            What sort of terrain does this nation have?
            Which landscape covers the country shown?
        """,
        "test": """
            Would a cyclist in this country meet steep mountains or level plains?
            What are the surface features of the land of this flag?
            How would you describe the lay of the land in this nation?
        """,
    },
}
