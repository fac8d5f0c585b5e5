#include "qalora/text/template.h"

#include <gtest/gtest.h>

#include "qalora/core/error.h"
#include "qalora/text/batch.h"
#include "tiny_tokenizer.h"

namespace qalora::text {
namespace {

using namespace qalora::test;
using Ids = std::vector<int64_t>;

Record request(const std::string& instruction, const std::string& input, const std::string& output) {
  Record record;
  record.instruction = instruction;
  record.input = input;
  record.output = output;
  return record;
}

Ids trained(const Example& example) {
  Ids ids;
  for (const int64_t label : example.labels) {
    if (label != kIgnore) ids.push_back(label);
  }
  return ids;
}

// The trained ids as text; streamed, so that no leading blank is dropped.
std::string trained_text(const Tokenizer& tokenizer, const Example& example) {
  std::string text;
  Ids before = {example.input_ids.front(), 100};  // something stands in front
  for (const int64_t id : trained(example)) {
    text += tokenizer.decode_next(before, id);
    before.push_back(id);
  }
  return text;
}

Ids untrained_front(const Example& example) {
  const auto first =
      std::find_if(example.labels.begin(), example.labels.end(), [](int64_t label) { return label != kIgnore; });
  return Ids(example.input_ids.begin(), example.input_ids.begin() + (first - example.labels.begin()));
}

TEST(RenderPrompt, IsStanfordAlpacasToTheByte) {
  EXPECT_EQ(
      render_prompt(TemplateKind::kAlpaca, "Name a colour.", ""),
      "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
      "### Instruction:\nName a colour.\n\n### Response:\n");
  EXPECT_EQ(
      render_prompt(TemplateKind::kAlpaca, "Translate.", "Haus"),
      "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that "
      "appropriately completes the request.\n\n### Instruction:\nTranslate.\n\n### Input:\nHaus\n\n### Response:\n");
}

TEST(RenderPrompt, ThePapersEndsWithABlank) {
  const std::string paper = render_prompt(TemplateKind::kAlpacaPaper, "Translate.", "Haus"),
                    plain = render_prompt(TemplateKind::kAlpaca, "Translate.", "Haus");
  EXPECT_TRUE(paper.ends_with("### Input:\nHaus\n\n### Response: "));
  EXPECT_NE(paper, plain);
  EXPECT_EQ(paper.substr(0, paper.size() - 1), plain.substr(0, plain.size() - 1));
}

TEST(RenderPrompt, NoneAndChat) {
  EXPECT_EQ(render_prompt(TemplateKind::kNone, "a", ""), "a");
  EXPECT_EQ(render_prompt(TemplateKind::kNone, "a", "b"), "a\nb");
  EXPECT_EQ(render_prompt(TemplateKind::kChat, "a", "b"), "### Human: a\nb\n### Assistant:");
}

TEST(TemplateNames, ReadBackAndSuggest) {
  for (const auto kind :
       {TemplateKind::kAlpaca, TemplateKind::kAlpacaPaper, TemplateKind::kNone, TemplateKind::kChat}) {
    EXPECT_EQ(parse_template(template_name(kind)), kind);
  }
  const std::string what = error_of<UserError>([] { parse_template("alpacca"); });
  EXPECT_CONTAINS(what, "'alpacca'");
  EXPECT_CONTAINS(what, "'alpaca'");
}

class Examples : public testing::Test {
 protected:
  void SetUp() override { write_tiny_tokenizer(dir_.path()); }
  TempDir dir_;
};

TEST_F(Examples, OnlyTheAnswerAndItsEndAreTrained) {
  const Tokenizer tokenizer(dir_.path());
  for (const auto kind : {TemplateKind::kAlpaca, TemplateKind::kNone, TemplateKind::kChat}) {
    const Record record = request("Say the word.", "in", "the answer\nin two lines");
    const Example example = make_example(tokenizer, record, {.kind = kind});
    ASSERT_EQ(example.input_ids.size(), example.labels.size());
    EXPECT_EQ(example.input_ids.front(), 1);
    EXPECT_EQ(example.input_ids.back(), 2);
    EXPECT_EQ(example.labels.back(), 2);
    EXPECT_EQ(trained_text(tokenizer, example), (kind == TemplateKind::kAlpaca ? "" : " ") + record.output);
    EXPECT_EQ(example.trained_tokens(), std::ssize(trained(example)));
    // Read as a whole it is the prompt and the answer.
    const std::string text = render_prompt(kind, record.instruction, record.input) +
                             (kind == TemplateKind::kAlpaca ? "" : " ") + record.output;
    EXPECT_EQ(tokenizer.decode(example.input_ids), text);
    EXPECT_EQ(example.input_ids, tokenizer.encode(text, {.add_bos = true, .add_eos = true})) << template_name(kind);
    // Must differ: with the prompt trained too.
    const Example whole = make_example(tokenizer, record, {.kind = kind, .train_on_prompt = true});
    EXPECT_EQ(whole.input_ids, example.input_ids);
    EXPECT_EQ(whole.labels, whole.input_ids);
    EXPECT_GT(whole.trained_tokens(), example.trained_tokens());
    EXPECT_EQ(whole.trained_tokens(), std::ssize(whole.input_ids) - 1);
  }
}

TEST_F(Examples, GenerationSeesTheTrainingPrompt) {
  const Tokenizer tokenizer(dir_.path());
  for (const std::string config : {R"({})", R"({"legacy": false})"}) {
    write_tiny_tokenizer(dir_.path(), config);
    const Tokenizer tokenizer(dir_.path());
    for (const auto kind :
         {TemplateKind::kAlpaca, TemplateKind::kAlpacaPaper, TemplateKind::kNone, TemplateKind::kChat}) {
      for (const std::string answer : {"the", " the", "\nthe", "\U0001F680", "####"}) {
        const Example example = make_example(tokenizer, request("Do ##", "", answer), {.kind = kind});
        EXPECT_EQ(untrained_front(example), make_prompt(tokenizer, kind, "Do ##"))
            << template_name(kind) << " '" << answer << "'";
      }
    }
  }
}

// "x " and "the" would merge into "x" and " the" when encoded together: the prompt must not change with the answer.
TEST_F(Examples, AnAnswerNeverChangesThePromptsIds) {
  const Tokenizer tokenizer(dir_.path());
  const Example example = make_example(tokenizer, request("x ", "", "the"), {.kind = TemplateKind::kNone});
  EXPECT_EQ(untrained_front(example), make_prompt(tokenizer, TemplateKind::kNone, "x "));
  EXPECT_EQ(tokenizer.decode(example.input_ids), "x the");
  EXPECT_NE(example.input_ids, tokenizer.encode("x the", {.add_bos = true, .add_eos = true}));
}

TEST_F(Examples, ThePapersAnswerHasAPrefixOfItsOwn) {
  const Tokenizer tokenizer(dir_.path());
  const Record record = request("Go", "", "the");
  const Example paper = make_example(tokenizer, record, {.kind = TemplateKind::kAlpacaPaper});
  Ids expected = tokenizer.encode(render_prompt(TemplateKind::kAlpacaPaper, "Go", ""), {.add_bos = true});
  const Ids answer = tokenizer.encode("the", {.add_eos = true});
  EXPECT_EQ(trained(paper), answer);
  expected.insert(expected.end(), answer.begin(), answer.end());
  EXPECT_EQ(paper.input_ids, expected);
  EXPECT_NE(trained(make_example(tokenizer, record, {.kind = TemplateKind::kAlpaca})), answer);
}

TEST_F(Examples, BlanksBetweenPromptAndAnswerUnderNone) {
  const Tokenizer tokenizer(dir_.path());
  const auto text = [&](const std::string& instruction, const std::string& output) {
    return tokenizer.decode(
        make_example(tokenizer, request(instruction, "", output), {.kind = TemplateKind::kNone}).input_ids);
  };
  EXPECT_EQ(text("a", "b"), "a b");
  EXPECT_EQ(text("a ", "b"), "a b");
  EXPECT_EQ(text("a", " b"), "a b");
  EXPECT_EQ(text("a", "\nb"), "a\nb");
}

TEST_F(Examples, CutsOnTheRightAndSaysSo) {
  const Tokenizer tokenizer(dir_.path());
  const Record record = request("Go", "", "the answer");
  const Example full = make_example(tokenizer, record, {});
  const int64_t length = std::ssize(full.input_ids);
  EXPECT_EQ(full.cut_tokens(), 0);
  EXPECT_EQ(make_example(tokenizer, record, {.sequence_length = length}).cut_tokens(), 0);
  const Example cut = make_example(tokenizer, record, {.sequence_length = length - 3});
  EXPECT_EQ(cut.cut_sequence, 3);
  EXPECT_EQ(cut.cut_tokens(), 3);
  EXPECT_EQ(cut.input_ids, Ids(full.input_ids.begin(), full.input_ids.end() - 3));
  EXPECT_EQ(cut.trained_tokens(), full.trained_tokens() - 3);
  EXPECT_NE(cut.labels.back(), 2);  // a cut answer does not end
  EXPECT_EQ(make_example(tokenizer, record, {.sequence_length = 10}).trained_tokens(), 0);
}

TEST_F(Examples, PlainTextIsTrainedWhole) {
  const Tokenizer tokenizer(dir_.path());
  Record record;
  record.text = "in the end";
  const Example example = make_example(tokenizer, record, {});
  EXPECT_EQ(example.input_ids, tokenizer.encode("in the end", {.add_bos = true, .add_eos = true}));
  EXPECT_EQ(example.labels[0], kIgnore);
  EXPECT_EQ(example.trained_tokens(), std::ssize(example.input_ids) - 1);
}

TEST_F(Examples, ALongTextIsTrainedInWindowsThatMissNothing) {
  const Tokenizer tokenizer(dir_.path());
  const Ids ids = text_ids(tokenizer, "in the end the hen is in the hall");
  const int64_t total = std::ssize(ids);
  for (const int64_t length : {int64_t{2}, int64_t{5}, total - 1, total, total + 1, int64_t{0}}) {
    Ids targets;
    const int64_t windows = text_window(ids, 0, length).windows;
    for (int64_t window = 0; window < windows; ++window) {
      const Example example = text_window(ids, window, length);
      EXPECT_EQ(example.windows, windows);
      EXPECT_EQ(example.cut_tokens(), 0);
      EXPECT_LE(std::ssize(example.input_ids), length > 0 ? length : total);
      EXPECT_GE(example.trained_tokens(), 1);
      targets.insert(targets.end(), example.labels.begin() + 1, example.labels.end());
    }
    EXPECT_EQ(targets, Ids(ids.begin() + 1, ids.end())) << length;  // each token once, in order
    EXPECT_EQ(windows > 1, length > 0 && length < total) << length;
  }
  Record record;
  record.text = "in the end the hen is in the hall";
  EXPECT_EQ(make_example(tokenizer, record, {.sequence_length = 5}).input_ids, text_window(ids, 0, 5).input_ids);
}

TEST_F(Examples, PromptAndAnswerAreCutApart) {
  const Tokenizer tokenizer(dir_.path());
  const Record record = request(std::string(200, 'x'), "", "the answer");
  const Example full = make_example(tokenizer, record, {}),
                source = make_example(tokenizer, record, {.source_length = 20});
  const Ids answer = trained(full);
  EXPECT_EQ(trained(source), answer);  // a long prompt takes nothing from its answer
  EXPECT_EQ(untrained_front(source), Ids(full.input_ids.begin(), full.input_ids.begin() + 20));
  EXPECT_EQ(source.cut_source, std::ssize(full.input_ids) - 20 - std::ssize(answer));
  EXPECT_EQ(source.cut_tokens(), source.cut_source);
  const Example target = make_example(tokenizer, record, {.target_length = 3});
  EXPECT_EQ(trained(target), Ids(answer.begin(), answer.begin() + 3));
  EXPECT_EQ(untrained_front(target), untrained_front(full));
  EXPECT_EQ(target.cut_target, std::ssize(answer) - 3);
  EXPECT_EQ(target.cut_tokens(), target.cut_target);
  const Example all = make_example(tokenizer, record, {.sequence_length = 22, .source_length = 20, .target_length = 3});
  EXPECT_EQ(all.cut_source, source.cut_source);
  EXPECT_EQ(all.cut_target, target.cut_target);
  EXPECT_EQ(all.cut_sequence, 1);
  // Must differ: cut as a whole the answer is lost; and limits that nothing reaches change nothing.
  EXPECT_EQ(make_example(tokenizer, record, {.sequence_length = 40}).trained_tokens(), 0);
  const Example wide = make_example(tokenizer, record, {.source_length = 1000, .target_length = 1000});
  EXPECT_EQ(wide.input_ids, full.input_ids);
  EXPECT_EQ(wide.cut_tokens(), 0);
}

TEST_F(Examples, ATokenizerWithoutAnEndIsRefused) {
  write_file(dir_ / "tokenizer.model", tiny_model(/*dummy_prefix=*/true, /*has_end=*/false));
  const Tokenizer tokenizer(dir_.path());
  ASSERT_EQ(tokenizer.eos_id(), -1);
  for (const auto kind : {TemplateKind::kAlpaca, TemplateKind::kNone, TemplateKind::kChat}) {
    const std::string what =
        error_of<DataError>([&] { make_example(tokenizer, request("Go", "", "the"), {.kind = kind}); });
    EXPECT_CONTAINS(what, dir_.path().string() + ": the tokenizer has no end-of-sequence token");
  }
  EXPECT_CONTAINS(error_of<DataError>([&] { text_ids(tokenizer, "the"); }), "no end-of-sequence");
  EXPECT_GT(make_prompt(tokenizer, TemplateKind::kAlpaca, "Go").size(), 0u);  // a prompt needs none
}

TEST_F(Examples, TokensAreTakenAsTheyAre) {
  Record record;
  record.input_ids = {5, 6, 7, 8};
  record.labels = {5, kIgnore, 7, 8};
  const Example example = make_token_example(record, {});
  EXPECT_EQ(example.input_ids, record.input_ids);
  EXPECT_EQ(example.labels, record.labels);
  EXPECT_EQ(example.trained_tokens(), 2);  // the first is predicted by nothing
  EXPECT_EQ(make_token_example(record, {.sequence_length = 3}).cut_sequence, 1);
  EXPECT_EQ(make_example(Tokenizer(dir_.path()), record, {}).input_ids, record.input_ids);
}

TEST_F(Examples, WithoutBosWhereTheTokenizerAddsNone) {
  write_tiny_tokenizer(dir_.path(), R"({"add_bos_token": false})");
  const Tokenizer tokenizer(dir_.path());
  EXPECT_NE(make_example(tokenizer, request("Go", "", "the"), {}).input_ids.front(), 1);
  EXPECT_NE(make_prompt(tokenizer, TemplateKind::kAlpaca, "Go").front(), 1);
  EXPECT_EQ(make_prompt(tokenizer, TemplateKind::kNone, ""), Ids{});
}

// Special tokens that a user writes are letters, not tokens.
TEST_F(Examples, WrittenEndMarksStayText) {
  const Tokenizer tokenizer(dir_.path());
  const Example example = make_example(tokenizer, request("Say </s> and <s>", "", "</s>"), {});
  EXPECT_EQ(std::count(example.input_ids.begin(), example.input_ids.end(), 2), 1);
  EXPECT_EQ(std::count(example.input_ids.begin(), example.input_ids.end(), 1), 1);
}

TEST(LlamaExamples, HaveThePapersTwoBlankPieces) {
  REQUIRE_SHARED(kLlamaModel);
  TempDir dir;
  copy_llama_tokenizer(dir.path());
  const Tokenizer tokenizer(dir.path());
  const Example paper =
      make_example(tokenizer, request("Say hello.", "", "Hello"), {.kind = TemplateKind::kAlpacaPaper});
  const int64_t colon = 29901, blank = 29871, hello = 15043, hello_without_blank = 10994;
  EXPECT_EQ(Ids(paper.input_ids.end() - 4, paper.input_ids.end()), (Ids{colon, blank, hello, 2}));
  const Example plain = make_example(tokenizer, request("Say hello.", "", "Hello"), {.kind = TemplateKind::kAlpaca});
  EXPECT_EQ(Ids(plain.input_ids.end() - 4, plain.input_ids.end()), (Ids{colon, 13, hello_without_blank, 2}));
}

}  // namespace
}  // namespace qalora::text
