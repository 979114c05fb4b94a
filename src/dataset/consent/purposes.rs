//! The purposes and the processing of DPV 2.3, and which term is narrower than which.
//!
//! Owns the pinned vocabulary. Facts of W3C DPV 2.3 (w3c/dpv at b70b397a, Turtle files
//! `2.3/dpv/modules/purposes.ttl`, `2.3/dpv/modules/processing.ttl` and
//! `2.3/ai/modules/development.ttl`): the terms and their `skos:broader`.

use crate::recipe::problem::most_alike;

/// Whether a row that allows `allowed` allows `wanted`: the same purpose, or a narrower one.
pub fn includes(allowed: &str, wanted: &str) -> bool {
    // The table has no cycle (tested), so this ends at its top.
    allowed == wanted || broader(wanted).iter().any(|above| includes(allowed, above))
}

/// Every purpose that [`includes`] one.
pub(super) fn allowing(wanted: &str) -> Vec<&str> {
    let above = broader(wanted).iter().flat_map(|broader| allowing(broader));
    std::iter::once(wanted).chain(above).collect()
}

/// Whether a row that allows the processing `allowed` allows `wanted`.
///
/// To train is to fine-tune, too. Other broader terms (`dpv:Transform` of `ai:ModelFineTuning`,
/// `dpv:Disclose` of `dpv:MakeAvailable`) are so wide that whoever agreed to them need not have
/// thought of a model: they allow themselves alone.
pub fn includes_processing(allowed: &str, wanted: &str) -> bool {
    allowing_processing(wanted).contains(&allowed)
}

/// Every processing that [`includes_processing`] one.
pub(super) fn allowing_processing(wanted: &str) -> Vec<&str> {
    match wanted {
        "ai:ModelFineTuning" => vec![wanted, "ai:ModelTraining"],
        _ => vec![wanted],
    }
}

/// Whether DPV 2.3 has this purpose.
pub fn is_known(purpose: &str) -> bool {
    find(purpose).is_some()
}

/// The purpose that is most like a word that is none.
pub fn nearest(word: &str) -> Option<&'static str> {
    most_alike(word, PURPOSES.iter().map(|(name, _)| *name))
}

/// Whether DPV 2.3 has this processing.
pub fn is_known_processing(processing: &str) -> bool {
    PROCESSING.binary_search(&processing).is_ok()
}

/// The processing that is most like a word that is none.
pub fn nearest_processing(word: &str) -> Option<&'static str> {
    most_alike(word, PROCESSING)
}

/// The purposes directly above one.
fn broader(purpose: &str) -> &'static [&'static str] {
    find(purpose).map(|(_, broader)| *broader).unwrap_or_default()
}

fn find(purpose: &str) -> Option<&'static (&'static str, &'static [&'static str])> {
    let index = PURPOSES.binary_search_by(|(name, _)| (*name).cmp(purpose)).ok()?;
    PURPOSES.get(index)
}

/// Every purpose and the purposes directly above it, sorted.
///
/// Two terms are left out as broader ones: `dpv:Purpose`, the top of the vocabulary, because
/// a row that allows "any purpose" names none; and `dpv:LegalObligation` above
/// `dpv:RightsFulfilment`, because it is a legal basis and no purpose.
#[rustfmt::skip]
const PURPOSES: [(&str, &[&str]); 121] = [
    ("dpv:AcademicResearch", &["dpv:ResearchAndDevelopment"]),
    ("dpv:AccountManagement", &[]),
    ("dpv:Advertising", &["dpv:Marketing"]),
    ("dpv:AgeVerification", &["dpv:Verification"]),
    ("dpv:CombatClimateChange", &["dpv:PublicBenefit"]),
    ("dpv:CommercialPurpose", &[]),
    ("dpv:CommercialResearch", &["dpv:CommercialPurpose", "dpv:ResearchAndDevelopment"]),
    ("dpv:CommunicationForCustomerCare", &["dpv:CommunicationManagement", "dpv:CustomerCare"]),
    ("dpv:CommunicationManagement", &[]),
    ("dpv:CounterMoneyLaundering", &["dpv:FraudPreventionAndDetection"]),
    ("dpv:Counterterrorism", &["dpv:PublicBenefit"]),
    ("dpv:CustomerCare", &["dpv:CustomerManagement"]),
    ("dpv:CustomerClaimsManagement", &["dpv:CustomerManagement"]),
    ("dpv:CustomerManagement", &[]),
    ("dpv:CustomerOrderManagement", &["dpv:CustomerManagement"]),
    ("dpv:CustomerRelationshipManagement", &["dpv:CustomerManagement"]),
    ("dpv:CustomerSolvencyMonitoring", &["dpv:CustomerManagement"]),
    ("dpv:DataAltruism", &["dpv:PublicBenefit"]),
    ("dpv:DeliveryOfGoods", &["dpv:RequestedServiceProvision"]),
    ("dpv:DirectMarketing", &["dpv:Marketing"]),
    ("dpv:DisputeManagement", &["dpv:OrganisationGovernance"]),
    ("dpv:EnforceAccessControl", &["dpv:EnforceSecurity"]),
    ("dpv:EnforceSecurity", &[]),
    ("dpv:EstablishContractualAgreement", &[]),
    ("dpv:FraudPreventionAndDetection", &["dpv:MisusePreventionAndDetection"]),
    ("dpv:FulfilmentOfContractualObligation", &["dpv:FulfilmentOfObligation"]),
    ("dpv:FulfilmentOfObligation", &[]),
    ("dpv:HumanResourceManagement", &[]),
    ("dpv:IdentityAuthentication", &["dpv:EnforceSecurity"]),
    ("dpv:IdentityVerification", &["dpv:Verification"]),
    ("dpv:ImproveExistingProductsAndServices", &["dpv:OptimisationForController"]),
    ("dpv:ImproveHealthcare", &["dpv:PublicBenefit"]),
    ("dpv:ImproveInternalCRMProcesses", &["dpv:CustomerRelationshipManagement", "dpv:OptimisationForController"]),
    ("dpv:ImprovePublicServices", &["dpv:PublicBenefit"]),
    ("dpv:ImproveTransportMobility", &["dpv:PublicBenefit"]),
    ("dpv:IncreaseServiceRobustness", &["dpv:OptimisationForController"]),
    ("dpv:InternalResourceOptimisation", &["dpv:OptimisationForController"]),
    ("dpv:LegalCompliance", &["dpv:FulfilmentOfObligation"]),
    ("dpv:MaintainFraudDatabase", &["dpv:FraudPreventionAndDetection"]),
    ("dpv:Marketing", &[]),
    ("dpv:MemberPartnerManagement", &["dpv:OrganisationGovernance"]),
    ("dpv:MisusePreventionAndDetection", &["dpv:EnforceSecurity"]),
    ("dpv:NonCommercialPurpose", &[]),
    ("dpv:NonCommercialResearch", &["dpv:NonCommercialPurpose", "dpv:ResearchAndDevelopment"]),
    ("dpv:OptimisationForConsumer", &["dpv:ServiceOptimisation"]),
    ("dpv:OptimisationForController", &["dpv:ServiceOptimisation"]),
    ("dpv:OptimiseUserInterface", &["dpv:OptimisationForConsumer"]),
    ("dpv:OrganisationComplianceManagement", &["dpv:OrganisationGovernance"]),
    ("dpv:OrganisationGovernance", &[]),
    ("dpv:OrganisationRiskManagement", &["dpv:OrganisationGovernance"]),
    ("dpv:PaymentManagement", &["dpv:ServiceManagement"]),
    ("dpv:Personalisation", &[]),
    ("dpv:PersonalisedAdvertising", &["dpv:Advertising", "dpv:Personalisation"]),
    ("dpv:PersonalisedBenefits", &["dpv:ServicePersonalisation"]),
    ("dpv:PersonnelBehaviourMonitoring", &["dpv:PersonnelMonitoring"]),
    ("dpv:PersonnelHiring", &["dpv:PersonnelManagement"]),
    ("dpv:PersonnelManagement", &["dpv:HumanResourceManagement"]),
    ("dpv:PersonnelMonitoring", &["dpv:PersonnelManagement"]),
    ("dpv:PersonnelOffboarding", &["dpv:PersonnelManagement"]),
    ("dpv:PersonnelOnboarding", &["dpv:PersonnelHiring"]),
    ("dpv:PersonnelPayment", &["dpv:PersonnelManagement"]),
    ("dpv:PersonnelPerformanceEvaluation", &["dpv:PersonnelPerformanceManagement"]),
    ("dpv:PersonnelPerformanceManagement", &["dpv:PersonnelManagement", "dpv:PersonnelMonitoring"]),
    ("dpv:PersonnelPerformanceMonitoring", &["dpv:PersonnelMonitoring", "dpv:PersonnelPerformanceManagement"]),
    ("dpv:PersonnelPerformancePrediction", &["dpv:PersonnelPerformanceManagement"]),
    ("dpv:PersonnelPromotionManagement", &["dpv:PersonnelManagement"]),
    ("dpv:PersonnelTerminationManagement", &["dpv:PersonnelManagement"]),
    ("dpv:PersonnelWorkloadManagement", &["dpv:PersonnelManagement"]),
    ("dpv:PoliticalCampaign", &["dpv:Advertising", "dpv:Personalisation"]),
    ("dpv:ProtectionOfIPR", &["dpv:FulfilmentOfObligation"]),
    ("dpv:ProtectionOfNationalSecurity", &["dpv:PublicBenefit"]),
    ("dpv:ProtectionOfPublicSecurity", &["dpv:PublicBenefit"]),
    ("dpv:ProvideEventRecommendations", &["dpv:ProvidePersonalisedRecommendations"]),
    ("dpv:ProvideOfficialStatistics", &["dpv:PublicBenefit"]),
    ("dpv:ProvidePersonalisedRecommendations", &["dpv:ServicePersonalisation"]),
    ("dpv:ProvideProductRecommendations", &["dpv:ProvidePersonalisedRecommendations"]),
    ("dpv:PublicBenefit", &[]),
    ("dpv:PublicPolicyMaking", &["dpv:PublicBenefit"]),
    ("dpv:PublicRelations", &["dpv:Marketing"]),
    ("dpv:RecordManagement", &[]),
    ("dpv:RecruitmentAdvertising", &["dpv:Advertising", "dpv:PersonnelHiring"]),
    ("dpv:RecruitmentApplicantBackgroundCheck", &["dpv:RecruitmentManagement"]),
    ("dpv:RecruitmentApplicantCriminalBackgroundCheck", &["dpv:RecruitmentManagement"]),
    ("dpv:RecruitmentApplicantInformationAuthentication", &["dpv:RecruitmentManagement"]),
    ("dpv:RecruitmentApplicantSelection", &["dpv:RecruitmentManagement"]),
    ("dpv:RecruitmentApplicationAnalysis", &["dpv:RecruitmentApplicationManagement"]),
    ("dpv:RecruitmentApplicationManagement", &["dpv:RecruitmentManagement"]),
    ("dpv:RecruitmentApplicationScreening", &["dpv:RecruitmentApplicationManagement"]),
    ("dpv:RecruitmentInterviewAnalysis", &["dpv:RecruitmentInterviewManagement"]),
    ("dpv:RecruitmentInterviewAssessment", &["dpv:RecruitmentInterviewManagement"]),
    ("dpv:RecruitmentInterviewManagement", &["dpv:RecruitmentManagement"]),
    ("dpv:RecruitmentInterviewScheduling", &["dpv:RecruitmentInterviewManagement"]),
    ("dpv:RecruitmentManagement", &["dpv:PersonnelHiring"]),
    ("dpv:RecruitmentTargetedAdvertising", &["dpv:RecruitmentAdvertising", "dpv:TargetedAdvertising"]),
    ("dpv:RepairImpairments", &["dpv:ServiceManagement"]),
    ("dpv:RequestedServiceProvision", &["dpv:ServiceProvision"]),
    ("dpv:ResearchAndDevelopment", &[]),
    ("dpv:RightsFulfilment", &[]),
    ("dpv:ScientificResearch", &["dpv:ResearchAndDevelopment"]),
    ("dpv:SearchFunctionalities", &["dpv:ServiceProvision"]),
    ("dpv:SellDataToThirdParties", &["dpv:SellProducts"]),
    ("dpv:SellInsightsFromData", &["dpv:SellProducts"]),
    ("dpv:SellProducts", &["dpv:ServiceProvision"]),
    ("dpv:SellProductsToDataSubject", &["dpv:SellProducts"]),
    ("dpv:ServiceAccessDetermination", &["dpv:ServiceManagement"]),
    ("dpv:ServiceManagement", &[]),
    ("dpv:ServiceMonitoring", &["dpv:ServiceManagement"]),
    ("dpv:ServiceOptimisation", &["dpv:ServiceManagement"]),
    ("dpv:ServicePersonalisation", &["dpv:Personalisation", "dpv:ServiceManagement"]),
    ("dpv:ServiceProvision", &["dpv:ServiceManagement"]),
    ("dpv:ServiceRegistration", &["dpv:ServiceManagement"]),
    ("dpv:ServiceUsageAnalytics", &["dpv:ServiceMonitoring"]),
    ("dpv:SocialMediaMarketing", &["dpv:Marketing"]),
    ("dpv:TargetedAdvertising", &["dpv:PersonalisedAdvertising"]),
    ("dpv:TechnicalServiceProvision", &["dpv:ServiceProvision"]),
    ("dpv:UserInterfacePersonalisation", &["dpv:ServicePersonalisation"]),
    ("dpv:VendorManagement", &[]),
    ("dpv:VendorPayment", &["dpv:VendorManagement"]),
    ("dpv:VendorRecordsManagement", &["dpv:VendorManagement"]),
    ("dpv:VendorSelectionAssessment", &["dpv:VendorManagement"]),
    ("dpv:Verification", &["dpv:EnforceSecurity"]),
];

/// Every processing, sorted, but for `dpv:Processing`, which is any.
#[rustfmt::skip]
const PROCESSING: [&str; 66] = [
    "ai:DataAggregation", "ai:DataAnnotation", "ai:DataCleaning", "ai:DataCollection",
    "ai:DataEnrichment", "ai:DataLabelling", "ai:DataOperation", "ai:DataPreparation",
    "ai:DataUpdating", "ai:ModelFineTuning", "ai:ModelTraining", "dpv:Access", "dpv:Acquire",
    "dpv:Adapt", "dpv:Aggregate", "dpv:Align", "dpv:Alter", "dpv:Analyse", "dpv:Anonymise",
    "dpv:Assess", "dpv:Collect", "dpv:Combine", "dpv:Consult", "dpv:Copy",
    "dpv:CrossBorderTransfer", "dpv:Delete", "dpv:Derive", "dpv:Destruct", "dpv:Disclose",
    "dpv:DiscloseByTransmission", "dpv:Display", "dpv:Disseminate", "dpv:Download", "dpv:Erase",
    "dpv:Export", "dpv:Filter", "dpv:Format", "dpv:Generate", "dpv:Infer", "dpv:MakeAvailable",
    "dpv:Match", "dpv:Modify", "dpv:Monitor", "dpv:Move", "dpv:Observe", "dpv:Obtain",
    "dpv:Organise", "dpv:Profiling", "dpv:Pseudonymise", "dpv:Query", "dpv:Record",
    "dpv:Reformat", "dpv:Remove", "dpv:Restrict", "dpv:Retrieve", "dpv:Screen", "dpv:Share",
    "dpv:Store", "dpv:Structure", "dpv:Tracking", "dpv:TrackingByFirstParty",
    "dpv:TrackingByThirdParty", "dpv:Transfer", "dpv:Transform", "dpv:Transmit", "dpv:Use",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_sorted_closed_and_without_a_cycle() {
        assert!(PURPOSES.is_sorted_by(|one, next| one.0 < next.0));
        assert!(PROCESSING.is_sorted_by(|one, next| one < next));
        for (name, broader) in PURPOSES {
            assert!(broader.is_sorted(), "{name}");
            for above in broader {
                assert!(is_known(above), "{above}");
                assert!(!includes(name, above), "{name} and {above} are above each other");
            }
        }
    }

    #[test]
    fn a_purpose_includes_itself_and_everything_below() {
        for (allowed, wanted) in [
            ("dpv:ServiceProvision", "dpv:ServiceProvision"),
            ("dpv:ServiceManagement", "dpv:ServiceProvision"),
            ("dpv:ServiceManagement", "dpv:DeliveryOfGoods"),
            ("dpv:Marketing", "dpv:RecruitmentTargetedAdvertising"),
            ("dpv:HumanResourceManagement", "dpv:RecruitmentTargetedAdvertising"),
            ("dpv:NonCommercialPurpose", "dpv:NonCommercialResearch"),
            ("dpv:CommercialPurpose", "dpv:CommercialResearch"),
            ("ex:Own", "ex:Own"),
        ] {
            assert!(includes(allowed, wanted), "{allowed} includes {wanted}");
        }
        for (allowed, wanted) in [
            ("dpv:ServiceProvision", "dpv:ServiceManagement"),
            ("dpv:Purpose", "dpv:ServiceProvision"),
            ("dpv:LegalObligation", "dpv:RightsFulfilment"),
            ("dpv:CommercialResearch", "dpv:NonCommercialResearch"),
            ("dpv:serviceProvision", "dpv:ServiceProvision"),
            ("ex:Own", "ex:Other"),
        ] {
            assert!(!includes(allowed, wanted), "{allowed} does not include {wanted}");
        }
    }

    #[test]
    fn training_includes_fine_tuning_and_nothing_else_is_widened() {
        assert!(includes_processing("ai:ModelTraining", "ai:ModelFineTuning"));
        assert!(includes_processing("dpv:MakeAvailable", "dpv:MakeAvailable"));
        for (allowed, wanted) in [
            ("ai:ModelFineTuning", "ai:ModelTraining"),
            ("dpv:Transform", "ai:ModelFineTuning"),
            ("dpv:Disclose", "dpv:MakeAvailable"),
            ("dpv:Processing", "dpv:MakeAvailable"),
        ] {
            assert!(!includes_processing(allowed, wanted), "{allowed} and {wanted}");
        }
    }

    #[test]
    fn a_word_that_is_nearly_a_term_is_told_which() {
        assert!(is_known("dpv:AcademicResearch") && !is_known("dpv:Purpose"));
        assert_eq!(nearest("dpv:ServiceProvison"), Some("dpv:ServiceProvision"));
        assert_eq!(nearest("dpv:ServiceOptimization"), Some("dpv:ServiceOptimisation"));
        assert_eq!(nearest("CommercialPurpose"), Some("dpv:CommercialPurpose"));
        assert_eq!(nearest("xyzzy"), None);
        assert!(is_known_processing("ai:ModelTraining") && !is_known_processing("dpv:Processing"));
        assert_eq!(nearest_processing("ai:ModelFinetuning"), Some("ai:ModelFineTuning"));
    }
}
