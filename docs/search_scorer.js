/**
 * Order of the search results: the numbers are Sphinx's own, and `score` changes the order of pages.
 *
 * Sphinx counts a word of any heading as much as a word of the page's title, so that a table of measurements came before
 * the page about the subject.
 */
var Scorer = {
  // What a page gains for each word of the query in its own title.
  ownTitle: 2,
  // What pages of measurements, and pages for developers, lose.
  record: 3,
  records: ["benchmarking", "benchmarks/", "development", "deviations/", "gpu/", "performance", "scaling", "scoreboard"],

  score: ([docname, title, , , score, , kind]) => {
    if (kind !== "text" && kind !== "title") return score;
    const query = new URLSearchParams(window.location.search).get("q") || "";
    const words = query.toLowerCase().split(/[\s.,:;()]+/).filter((word) => word.length > 2);
    const own = words.filter((word) => title.toLowerCase().includes(word)).length;
    const record = Scorer.records.some((name) => docname.startsWith(name));
    return score + own * Scorer.ownTitle - (record ? Scorer.record : 0);
  },

  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
