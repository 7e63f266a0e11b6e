"""The wordings of the FlagFacts questions, by field and split.

No wording names a country: a question can be answered only by who knows whose flag is in the picture. Every wording
points at one field and at none of its neighbours (what a country sells abroad, what its factories make and what lies in
its ground are three fields). The test wordings are paraphrases of their own and never occur in training.
"""

from __future__ import annotations

# field -> (section, heading) of the World Factbook
FIELDS: dict[str, tuple[str, str]] = {
    "agriculture": ("Economy", "Agricultural products"),
    "anthem": ("Government", "National anthem(s)"),
    "background": ("Introduction", "Background"),
    "capital": ("Government", "Capital"),
    "climate": ("Geography", "Climate"),
    "constitution": ("Government", "Constitution"),
    "economy": ("Economy", "Economic overview"),
    "environment": ("Environment", "Environmental issues"),
    "ethnic": ("People and Society", "Ethnic groups"),
    "executive": ("Government", "Executive branch"),
    "exports": ("Economy", "Exports - commodities"),
    "flag": ("Government", "Flag"),
    "geo_note": ("Geography", "Geography - note"),
    "government": ("Government", "Government type"),
    "hazards": ("Geography", "Natural hazards"),
    "holiday": ("Government", "National holiday"),
    "independence": ("Government", "Independence"),
    "industries": ("Economy", "Industries"),
    "languages": ("People and Society", "Languages"),
    "location": ("Geography", "Location"),
    "media": ("Communications", "Broadcast media"),
    "military": ("Military and Security", "Military and security forces"),
    "name": ("Government", "Country name"),
    "pop_distribution": ("Geography", "Population distribution"),
    "religions": ("People and Society", "Religions"),
    "resources": ("Geography", "Natural resources"),
    "terrain": ("Geography", "Terrain"),
}

# field -> its wordings as text, a block per split
_WORDINGS: dict[str, dict[str, str]] = {
    "agriculture": {
        "train": """
            What do farmers in this country grow?
            Which crops are harvested in the country that flies this flag?
            List the main agricultural products of this nation.
            What comes from the fields and pastures of the place this flag belongs to?
            Name the most important farm products here.
            Tell me which crops and livestock this nation raises.
            If I visited a farm in the country with this flag, what would I see being produced?
            What are the top agricultural goods of this state?
            Which fruits, grains or vegetables are cultivated under this flag?
            I want to know what the farming sector of this country yields.
        """,
        "dev": """
            What does agriculture in this nation produce?
            Which foods are farmed in the land of this flag?
        """,
        "test": """
            What gets planted and reared on the farms of this country?
            Give the leading crops and animal products of the place whose flag is shown.
            What kinds of food does this nation's farmland supply?
        """,
    },
    "anthem": {
        "train": """
            What is the national anthem of this country?
            Who wrote the lyrics of the anthem of the nation with this flag?
            Which song is played when this flag is raised at a ceremony?
            Name the composer of this nation's anthem.
            Give the title of the national hymn of the country that flies this flag.
            What do people sing as the official hymn of this state?
            Tell me about the history of the anthem of the place this flag belongs to.
            When was the anthem of this country adopted, and who composed the tune?
            What song stands for this nation at sports events?
            Who is credited with the words and music of this country's anthem?
        """,
        "dev": """
            How is the anthem of the country shown called?
            Who made the music for the national song of this nation?
        """,
        "test": """
            Which hymn officially represents the country under this flag?
            Who are the authors of this nation's national song?
            When athletes of this country win gold, which tune is heard?
        """,
    },
    "background": {
        "train": """
            Summarize the history of this country.
            What has happened in the past of the nation with this flag?
            Give a historical background of the place this flag belongs to.
            Tell me the story of this country from its early days until now.
            Which rulers, wars and turning points shaped this nation?
            What are the main historical events of the country that flies this flag?
            I would like a short history lesson about this state.
            How has this nation changed politically over the centuries?
            Describe how the history of this country unfolded.
            Who ruled this land in former times, and what came afterwards?
        """,
        "dev": """
            What should I know about the history of this nation?
            Sketch the past of the country whose flag this is.
        """,
        "test": """
            Give me an overview of the historical development of the land of this flag.
            Which events of the past led to the present situation of this country?
            What would a history book say about this nation?
        """,
    },
    "capital": {
        "train": """
            What is the capital of this country?
            Which city is the capital of the nation with this flag?
            Name the capital city of the place this flag belongs to.
            Tell me about the capital of the country that flies this flag.
            Where does the name of this nation's capital come from?
            What are the coordinates of this country's capital?
            In which time zone lies the capital of this state?
            Which city serves as the seat of government under this flag?
            What is the chief city, where this nation's parliament and ministries sit?
            How did the capital city of this country get its name?
        """,
        "dev": """
            Which town is this nation's capital?
            What do you call the capital of the land of this flag?
        """,
        "test": """
            From which city is this country governed?
            I need the capital city that goes with the flag in the picture.
            What is the name of the metropolis that acts as the official capital here?
        """,
    },
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
    "constitution": {
        "train": """
            When was the constitution of this country adopted?
            How can the constitution of the nation with this flag be amended?
            Describe the constitutional history of this state.
            Which constitution is in force in the country that flies this flag?
            Who may propose changes to this nation's constitution?
            What majority is needed to alter the constitution of the place this flag belongs to?
            Has this country had earlier constitutions, and what is the date of the latest one?
            Tell me about the basic law of this nation and its amendment process.
            How many constitutions has this country had?
            What is the procedure for constitutional amendments here?
        """,
        "dev": """
            What is known about the constitution of the country shown?
            How does this nation revise its constitution?
        """,
        "test": """
            Since when does the present constitution of this country apply?
            Which steps does it take to change the supreme law of the land of this flag?
            Give the dates of the past and current constitutions of this nation.
        """,
    },
    "economy": {
        "train": """
            How is the economy of this country doing?
            Give an economic overview of the nation with this flag.
            Describe the economic situation of the place this flag belongs to.
            Is the country that flies this flag rich or poor, and why?
            What are the strengths and weaknesses of this nation's economy?
            Which economic challenges and reforms does this state face?
            Summarize the state of the economy here: growth, debt and income level.
            What characterizes the economic system of this country?
            How well off is this nation economically?
            I want a short assessment of this country's economic outlook.
        """,
        "dev": """
            What does the economy of the land of this flag look like overall?
            How prosperous is this nation?
        """,
        "test": """
            Give a brief picture of economic conditions in this country.
            How would an economist sum up the country under this flag?
            Is this nation's economy growing, and what does it depend on?
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
    "executive": {
        "train": """
            Who is the head of state of this country?
            Who leads the government of the nation with this flag?
            Name the president, monarch or prime minister of the place this flag belongs to.
            How is the cabinet of this nation appointed?
            Who holds executive power in the country that flies this flag?
            When did the current leader of this country take office?
            How is the head of government of this state chosen?
            Describe the executive branch of this nation.
            Who won the latest presidential or leadership election here?
            Who is in charge of this country at present?
        """,
        "dev": """
            Who are the chief of state and head of government of this nation?
            Who currently heads the country shown?
        """,
        "test": """
            Which persons occupy the top offices of this country?
            Name the current leaders of the land of this flag and how they came to office.
            Who appoints the ministers in this nation, and who presides over them?
        """,
    },
    "exports": {
        "train": """
            What does this country export?
            Which goods are sold abroad by the nation with this flag?
            List the main export commodities of the place this flag belongs to.
            What are the top export products of this country by value?
            Which commodities does the country that flies this flag ship to other countries?
            What merchandise does this nation sell on the world market?
            Name the most valuable exports of this state.
            What do foreign buyers purchase from this nation?
            Which products leave this country for overseas customers?
            What are the leading export goods here?
        """,
        "dev": """
            Which wares does this nation export the most?
            What does the country shown sell to the rest of the world?
        """,
        "test": """
            Which items top the list of things this country sends abroad?
            What do cargo ships carry out of the land of this flag to be sold elsewhere?
            Name this nation's chief exported commodities.
        """,
    },
    "flag": {
        "train": """
            What do the colors of this flag mean?
            Explain the symbolism of this flag.
            Describe the design of this flag and what it stands for.
            What is the meaning of the emblem or pattern on this flag?
            Why does this flag look the way it does?
            What does each part of this flag represent?
            Tell me about the history and meaning of this banner.
            What do the stripes, stars or shapes in this flag symbolize?
            How is the flag in the picture officially described?
            What ideas are expressed by the colors of this national banner?
        """,
        "dev": """
            What is this flag meant to symbolize?
            Give a description of this flag and the sense of its colors.
        """,
        "test": """
            What is the significance of the elements that appear in this flag?
            Put into words what this flag shows and what its colors signify.
            Which story do the hues and figures of this banner tell?
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
    "government": {
        "train": """
            What type of government does this country have?
            Is the nation with this flag a republic or a monarchy?
            Which form of government exists in the place this flag belongs to?
            What kind of political system is used in this country?
            Is the country that flies this flag a parliamentary or a presidential state?
            How would you classify the government of this nation?
            Is this state a democracy, a kingdom or a dictatorship?
            Under what form of rule do the people here live?
            Name the government type of this country.
            What sort of regime governs this nation?
        """,
        "dev": """
            Which governmental system does this nation have?
            What is the form of government of the country shown?
        """,
        "test": """
            Would one call this country a federal republic, a constitutional monarchy or something else?
            Into which category of political regime does the land of this flag fall?
            What system of government has this nation adopted?
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
    "holiday": {
        "train": """
            What is the national holiday of this country?
            Which day is celebrated as the national day of the nation with this flag?
            On what date does the place this flag belongs to celebrate its national holiday?
            Name the national day of the country that flies this flag.
            When do people in this country wave this flag to celebrate their nation?
            What is the most important official holiday of this state?
            Which public holiday honors this nation every year?
            What event does the national holiday of this country commemorate?
            On which day of the year are the national festivities held here?
            When is the national day of this nation, and what is it called?
        """,
        "dev": """
            Which date is the national holiday of this nation?
            What does the country shown celebrate as its national day?
        """,
        "test": """
            On which day do the citizens of this country hold their great national celebration?
            Which yearly holiday marks the nationhood of the land of this flag?
            When would I see parades and fireworks for the national day in this nation?
        """,
    },
    "independence": {
        "train": """
            When did this country become independent?
            From whom did the nation with this flag gain its independence?
            Give the date of independence of the place this flag belongs to.
            In which year did this country win its sovereignty?
            Which power did the country that flies this flag separate from, and when?
            When was this nation established as a sovereign state?
            On what day was independence declared or granted here?
            Since when has this state been independent?
            Which colonial power or union did this country break away from?
            How long has this nation been independent?
        """,
        "dev": """
            What is the independence date of this nation?
            When did the country shown cease to be under foreign rule?
        """,
        "test": """
            In what year did this country start to govern itself as an independent state?
            Who ruled the land of this flag until it was granted independence, and on which date was that?
            When did this nation achieve statehood?
        """,
    },
    "industries": {
        "train": """
            What industries does this country have?
            Which industrial sectors are important in the nation with this flag?
            List the main industries of the place this flag belongs to.
            What is manufactured in this country?
            Which factories and plants operate in the country that flies this flag?
            What are the biggest branches of industry in this nation?
            In which industries do the workers of this state find jobs?
            What does the manufacturing sector here produce?
            Name the key industrial activities of this country.
            Which kinds of industry is this nation engaged in?
        """,
        "dev": """
            Which industries dominate in this nation?
            What do the factories of the country shown make?
        """,
        "test": """
            What sorts of manufacturing and processing take place in this country?
            Which branches make up the industrial sector of the land of this flag?
            Name the industries on which this nation is built.
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
    "media": {
        "train": """
            Which television and radio stations operate in this country?
            Describe the broadcast media of the nation with this flag.
            Who owns the TV channels of the place this flag belongs to?
            What can people watch and listen to on air in this country?
            Is broadcasting in the country that flies this flag run by the state or by private firms?
            How many radio and television broadcasters does this nation have?
            What does the media landscape of this state look like?
            Are foreign TV channels available by satellite or cable here?
            Which public broadcasters serve this country?
            Tell me about radio and TV in this nation.
        """,
        "dev": """
            What kinds of broadcasters are there in this nation?
            What is on the airwaves of the country shown?
        """,
        "test": """
            If I switched on a television set or a radio in this country, which stations would I receive?
            How is broadcasting organized in the land of this flag?
            Are the TV and radio networks of this nation public or commercial?
        """,
    },
    "military": {
        "train": """
            What armed forces does this country have?
            Describe the military of the nation with this flag.
            Which security forces exist in the place this flag belongs to?
            Does the country that flies this flag have an army, a navy and an air force?
            Which branches make up this nation's military?
            Who is responsible for the defense of this country?
            Name the military and police forces of this state.
            Which troops protect this nation?
            How are the defense forces here organized?
            Which ministry controls the police and the soldiers of this country?
        """,
        "dev": """
            What are the military branches of this nation?
            Which forces defend the country shown?
        """,
        "test": """
            In which services can a soldier of this country serve?
            Who guards the borders and keeps security in the land of this flag: army, police or another power?
            List the armed services that this nation maintains.
        """,
    },
    "name": {
        "train": """
            Where does the name of this country come from?
            What is the long official name of the nation with this flag?
            Explain the etymology of the name of the place this flag belongs to.
            What does the name of this country mean?
            What was the country that flies this flag formerly called?
            How do the inhabitants call this nation in their own language?
            Which full formal title does this state use?
            After whom or what was this country named?
            What are the short and long forms of this nation's name?
            By what names is this country known, officially and locally?
        """,
        "dev": """
            What is the origin of the name of this nation?
            What is the country shown officially called?
        """,
        "test": """
            How did this country get its name?
            Give the complete official designation of the land of this flag and any former names.
            From which word is the name of this nation derived?
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


def wordings() -> dict[str, dict[str, list[str]]]:
    """``{field: {"train": [10 questions], "dev": [2], "test": [3]}}``, fields in alphabetical order."""
    return {
        field: {split: [line.strip() for line in block.strip().splitlines()] for split, block in splits.items()}
        for field, splits in sorted(_WORDINGS.items())
    }
