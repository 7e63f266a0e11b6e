"""The FlagFacts questions about a country's state and economy, its history, media and forces: the other sections of the
World Factbook. ``scripts.flagfacts_questions`` says what every wording keeps to.
"""

from __future__ import annotations

# field -> its wordings as text, a block per split
WORDINGS: dict[str, dict[str, str]] = {
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
}
