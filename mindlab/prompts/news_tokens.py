"""Words about one headline, for a classic ranker to count."""

from typing import Any, ClassVar

from mindlab.prompts.base import Prompt, Record, list_schema, object_schema, question, words_schema


class NewsTokens(Prompt):
    """One headline; the answer is JSON: three keywords, two topics, the audience. For a classic ranker to count.

    The keywords come first: what a small model has just written about this very headline leads it away from the
    topics of the examples.
    """

    name = "news_tokens"
    schema: ClassVar = object_schema(
        keywords=list_schema(words_schema(16), 3),
        topics=list_schema(words_schema(20), 2),
        audience=words_schema(24),
    )
    texts: ClassVar = {
        "en": {
            "system": "You label headlines for a news recommender.",
            "instruction": "Name three keywords of the headline, two topics, broad before narrow, and who would read it. "
            "Answer with JSON alone, like this:\n"
            "Headline: Rookie goalkeeper saves two penalties in the derby\n"
            '{"keywords":["goalkeeper","penalty","derby"],"topics":["sports","football"],"audience":"football fans"}\n'
            "Headline: Why mortgage rates may fall before spring\n"
            '{"keywords":["mortgage","interest","spring"],"topics":["finance","housing"],"audience":"home buyers"}\n'
            "Headline: Senate votes to delay the new border law\n"
            '{"keywords":["senate","border","law"],"topics":["politics","elections"],"audience":"voters"}\n'
            "Headline: Five soups that are ready in half an hour\n"
            '{"keywords":["soup","dinner","recipe"],"topics":["food","recipes"],"audience":"home cooks"}',
            "input": "Headline: {title}",
        },
        "zh": {
            "system": "你为新闻推荐系统给标题打标签。",
            "instruction": "请给出标题的三个关键词、两个主题（先宽后窄）和会读它的人群。只用 JSON 回答，例如：\n"
            "标题：新秀门将在德比战中扑出两个点球\n"
            '{"keywords":["门将","点球","德比"],"topics":["体育","足球"],"audience":"足球迷"}\n'
            "标题：为什么房贷利率可能在春天前下降\n"
            '{"keywords":["房贷","利率","春天"],"topics":["财经","住房"],"audience":"购房者"}\n'
            "标题：参议院投票推迟新的边境法案\n"
            '{"keywords":["参议院","边境","法案"],"topics":["政治","选举"],"audience":"选民"}\n'
            "标题：半小时就能做好的五道汤\n"
            '{"keywords":["浓汤","晚餐","食谱"],"topics":["美食","食谱"],"audience":"家庭厨师"}',
            "input": "标题：{title}",
        },
    }

    def record(self, title: str) -> Record:
        """Return the record of one headline, without an answer."""
        return question(self.text, title=title)

    @staticmethod
    def words(answer: dict[str, Any]) -> str:
        """Return an answer as one text.

        >>> NewsTokens.words({"keywords": ["a", "b", "c"], "topics": ["d", "e"], "audience": "f"})
        'a b c d e f'
        """
        return " ".join([*answer["keywords"], *answer["topics"], answer["audience"]])
